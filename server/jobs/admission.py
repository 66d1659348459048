"""Between a job's inputs and its worker: hashes go to the audit log, and the operator's hook may refuse.

A hook that breaks, or answers too late or with nonsense, refuses as well: nothing runs unasked. It knows no
dialect and no worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shlex
import signal
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.jobs.service import JobService
from server.jobs.state import Failure
from server.storage.transport import Transport, TransportError, TransportPolicy
from server.store import Record, audit

log = logging.getLogger("lipsync.gate")

SENTENCE_LENGTH = 300


class AdmissionCode(StrEnum):
    """Why a job was not let through."""

    JOB_REFUSED = "job_refused"
    HOOK_FAILED = "hook_failed"


class _BrokenError(Exception):
    """The hook gave no answer; the text says why, for the log."""


class AdmissionCheck:
    """See the module.

    Args:
        hook: an http(s) URL to POST to, or a command line to run without a shell; None: nobody is asked.
        timeout_s: after which a hook counts as broken.
    """

    def __init__(self, jobs: JobService, hook: str | None, timeout_s: float) -> None:
        self._jobs, self._hook, self._timeout_s = jobs, hook, timeout_s

    async def admit(self, record: Record, inputs: Mapping[str, Path]) -> Failure | None:
        """None where the job may run.

        Args:
            inputs: local files by name.
        """
        hashes = await asyncio.to_thread(lambda: {name: sha256_of(path) for name, path in inputs.items()})
        entry = audit.job_inputs(record.job, record.request, self._jobs.now(), hashes)
        await self._jobs.write(partial(self._jobs.store.audit.add, entry))
        if self._hook is None:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = _read(await self._ask(_question(record, inputs, hashes)))
        except (_BrokenError, TimeoutError) as error:
            why = str(error) or f"no answer within {self._timeout_s:g} s"
            log.error("job %s: the hook is broken: %s", record.job.id, why, extra=record.tags)
            sentence = "The check that this server asks before every job did not answer: tell its operator."
            return Failure(AdmissionCode.HOOK_FAILED, sentence)
        if answer.allow:
            return None
        return Failure(
            AdmissionCode.JOB_REFUSED, answer.message or "The operator of this server refused this job."
        )

    async def _ask(self, question: bytes) -> bytes:
        hook = self._hook or ""
        if urlsplit(hook).scheme in ("http", "https"):
            return await _posted(hook, question, self._timeout_s)
        return await _ran(shlex.split(hook), question)


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    allow: bool
    message: str


def _question(record: Record, inputs: Mapping[str, Path], hashes: Mapping[str, str]) -> bytes:
    request, roles = record.request, {source.name: source.role for source in record.request.sources}
    files = [
        {"name": name, "role": roles[name], "sha256": hashes[name], "path": str(path)}
        for name, path in inputs.items()
    ]
    asked: dict[str, Any] = {
        "job": record.job.id,
        "tenant": record.job.tenant,
        "key_id": request.key_id,
        "request_id": request.request_id,
        "model": request.endpoint,
        "consent": request.consent,
        "options": request.options.chosen(),
        "inputs": files,
    }
    return json.dumps(asked).encode()


def _read(answer: bytes) -> _Answer:
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not isinstance(allow := given.get("allow"), bool):
        raise _BrokenError('its answer is not {"allow": true} or {"allow": false, "message": "…"}')
    message = given.get("message")
    return _Answer(allow, message[:SENTENCE_LENGTH] if isinstance(message, str) else "")


async def _posted(url: str, question: bytes, timeout_s: float) -> bytes:
    # The operator named this place, which may be an inner one; users' URLs get no such exception.
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    host = f"[{place.hostname}]" if ":" in (place.hostname or "") else place.hostname
    policy = TransportPolicy(allow=(f"{host}:{port}",), webhook_s=timeout_s)
    try:
        async with Transport(policy) as transport:
            delivered = await transport.post_webhook(url, question, {"Content-Type": "application/json"})
    except TransportError as error:
        raise _BrokenError(error.message) from error
    if delivered.status != 200:
        raise _BrokenError(f"status {delivered.status}")
    return delivered.body


async def _ran(command: list[str], question: bytes) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise _BrokenError(f"{command[0]}: {error.strerror}") from error
    try:
        said, _ = await process.communicate(question)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        raise _BrokenError(f"{command[0]}: status {process.returncode}")
    return said


def sha256_of(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
