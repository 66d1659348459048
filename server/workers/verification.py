"""Verification of a file's content credentials in a child process, because the file may be hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.workers.cli_child import ChildFailedError, CliChild

VERDICT_STATUSES = frozenset({0, 1, 4, 5})
"""Exit statuses with which the command has printed a verdict."""


class NotVerifiedError(Exception):
    """The file could not be read."""


async def verify_file(child: CliChild, file: Path, tenant: str) -> dict[str, Any]:
    """Return the object that `lipsync verify --json FILE` prints.

    Raises:
        NotVerifiedError.
    """
    try:
        output = await child.run(
            "verify", "--json", str(file), tenant=tenant, file=file, statuses=VERDICT_STATUSES
        )
    except ChildFailedError:
        raise NotVerifiedError from None
    verdict: dict[str, Any] = json.loads(output)
    return verdict
