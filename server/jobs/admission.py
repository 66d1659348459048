"""Admission check before a job runs: input hashes go to the audit log, and the operator's hook may reject.

A hook that fails, times out or sends an invalid answer rejects the job as well: no job runs unchecked. The
module knows no dialect and no worker.
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
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.jobs.service import JobService
from server.jobs.state import Failure
from server.storage.transport import Transport, TransportError, TransportPolicy
from server.store import Record, audit

log = logging.getLogger("lipsync.admission")

MAX_MESSAGE_LENGTH = 300


class AdmissionCode(StrEnum):
    """Why a job was not admitted."""

    JOB_REFUSED = "job_refused"
    HOOK_FAILED = "hook_failed"


class _HookError(Exception):
    """The hook gave no valid answer; the text says why, for the log."""


class AdmissionCheck:
    """Runs the operator's hook and records input hashes.

    Args:
        hook: an http(s) URL to POST to, or a command line to run without a shell; None: all jobs are
            admitted.
        timeout_s: after which the hook counts as failed.
        sign: returns the headers of a request to a URL; (job id, body).
    """

    def __init__(
        self,
        jobs: JobService,
        hook: str | None,
        timeout_s: float,
        sign: Callable[[str, bytes], dict[str, str]],
    ) -> None:
        self._jobs, self._hook, self._timeout_s, self._sign = jobs, hook, timeout_s, sign

    async def check(self, record: Record, inputs: Mapping[str, Path]) -> Failure | None:
        """Return why a job must not run; None: it is admitted.

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
                decision = _parse(
                    await self._call(self._hook, record.job.id, _question(record, inputs, hashes))
                )
        except (_HookError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._timeout_s:g} s"
            log.error("job %s: admission hook failed: %s", record.job.id, reason, extra=record.tags)
            message = "The admission check of this server failed: contact its operator."
            return Failure(AdmissionCode.HOOK_FAILED, message)
        if decision.allow:
            return None
        message = decision.message or "The operator of this server refused this job."
        return Failure(AdmissionCode.JOB_REFUSED, message)

    async def _call(self, hook: str, job_id: str, question: bytes) -> bytes:
        if urlsplit(hook).scheme in ("http", "https"):
            return await _post(hook, question, self._sign(job_id, question), self._timeout_s)
        return await _run_command(shlex.split(hook), question)


@dataclasses.dataclass(frozen=True, slots=True)
class _Decision:
    allow: bool
    message: str


def _question(record: Record, inputs: Mapping[str, Path], hashes: Mapping[str, str]) -> bytes:
    request, roles = record.request, {source.name: source.role for source in record.request.sources}
    files = [
        {"name": name, "role": roles[name], "sha256": hashes[name], "path": str(path)}
        for name, path in inputs.items()
    ]
    question: dict[str, Any] = {
        "job": record.job.id,
        "tenant": record.job.tenant,
        "key_id": request.key_id,
        "request_id": request.request_id,
        "model": request.endpoint,
        "consent": request.consent,
        "options": request.options.chosen(),
        "inputs": files,
    }
    return json.dumps(question).encode()


def _parse(answer: bytes) -> _Decision:
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not isinstance(allow := fields.get("allow"), bool):
        raise _HookError('its answer is not {"allow": true} or {"allow": false, "message": "…"}')
    message = fields.get("message")
    return _Decision(allow, message[:MAX_MESSAGE_LENGTH] if isinstance(message, str) else "")


async def _post(url: str, question: bytes, headers: dict[str, str], timeout_s: float) -> bytes:
    # The operator configured this address, which may be private; users' URLs get no such exception.
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    policy = TransportPolicy(allow=(f"{host}:{port}",), webhook_s=timeout_s)
    try:
        async with Transport(policy) as transport:
            response = await transport.post_webhook(url, question, headers)
    except TransportError as error:
        raise _HookError(error.message) from error
    if response.status != 200:
        raise _HookError(f"status {response.status}")
    return response.body


async def _run_command(command: list[str], question: bytes) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise _HookError(f"{command[0]}: {error.strerror}") from error
    try:
        answer, _ = await process.communicate(question)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        raise _HookError(f"{command[0]}: status {process.returncode}")
    return answer


def sha256_of(path: Path) -> str:
    """Compute the hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
