"""Tells callers that their jobs or batches have ended: at least once, in order of need, over about a day.

What is to be told stands in the store's outbox, written in the commit that ended the job; so a crash loses
nothing. The body and its signature are made anew for every try by the job's dialect. It knows no dialect by
name and opens no connection itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.jobs.service import JobService
from server.jobs.state import Batch
from server.storage.transport import Transport, TransportError
from server.store import OutboxEntry, Record

log = logging.getLogger("lipsync.webhooks")

PAUSES_S = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""After each failed try. The first three are the contract's; the last ends about a day after the first."""

JITTER = 0.2
"""Each pause is up to that much longer, so that receivers that come back are not met by everybody at once."""

LOOK_EVERY_S = 30.0
AT_ONCE = 8
HOLD_S = 60.0
"""So long a notice belongs to the process that delivers it; a delivery takes a sixth of it at most."""


@dataclass(frozen=True, slots=True)
class WebhookPayload:
    """Body and headers of one delivery attempt."""

    body: bytes
    headers: dict[str, str]


PayloadBuilder = Callable[[Record, str, float], WebhookPayload]
"""(job, webhook secret, now) → payload."""

BatchPayloadBuilder = Callable[[Batch, str, float], WebhookPayload]
"""(batch, webhook secret, now) → payload."""


class Webhooks:
    """Delivers notices until cancelled.

    Args:
        payload_builders: by dialect name, for jobs.
        batch_payload_builder: for batches.
    """

    def __init__(
        self,
        jobs: JobService,
        transport: Transport,
        payload_builders: dict[str, PayloadBuilder],
        batch_payload_builder: BatchPayloadBuilder,
    ) -> None:
        self._jobs, self._transport = jobs, transport
        self._payload_builders, self._batch_payload_builder = payload_builders, batch_payload_builder

    async def run(self) -> None:
        while True:
            self._jobs.webhook_due.clear()
            due = await self._jobs.write(self._claim)
            if due:
                await asyncio.gather(*(self._try(notice) for notice in due))
                continue
            pause_s = self._pause_s()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._jobs.webhook_due.wait(), pause_s)

    def _claim(self) -> list[OutboxEntry]:
        store = self._jobs.store
        return store.claim_webhooks(store.now(), AT_ONCE, HOLD_S)

    def _pause_s(self) -> float:
        """Until the next notice is due, or for a while."""
        due_at = self._jobs.store.next_webhook_at()
        return LOOK_EVERY_S if due_at is None else min(LOOK_EVERY_S, max(0.05, due_at - self._jobs.now()))

    async def _try(self, notice: OutboxEntry) -> None:
        store = self._jobs.store
        if (entry := self._build_payload(notice)) is None:
            await self._jobs.write(partial(store.webhook_failed, notice.id, "the job was deleted", None))
            return
        payload, tags = entry
        try:
            delivered = await self._transport.post_webhook(notice.url, payload.body, payload.headers)
        except TransportError as error:
            problem: str | None = error.message
        else:
            problem = None if 200 <= delivered.status < 300 else f"status {delivered.status}"
        if problem is None:
            await self._jobs.write(partial(store.webhook_delivered, notice.id, self._jobs.now()))
            log.info("%s: webhook delivered", notice.subject, extra=tags)
            return
        due_at = None
        if notice.tries < len(PAUSES_S):
            due_at = self._jobs.now() + PAUSES_S[notice.tries] * random.uniform(1, 1 + JITTER)
        await self._jobs.write(partial(store.webhook_failed, notice.id, problem, due_at))
        sentence = "%s: webhook not delivered (%s), try %d"
        log.warning(sentence, notice.subject, problem, notice.tries + 1, extra=tags)

    def _build_payload(self, notice: OutboxEntry) -> tuple[WebhookPayload, dict[str, str]] | None:
        """Build the payload and the tags of log lines; None: the job or batch was deleted."""
        store, now = self._jobs.store, self._jobs.now()
        about = store.get(notice.job_id) if notice.job_id else store.get_batch(notice.batch_id or "")
        if about is None:
            return None
        asked = about if isinstance(about, Batch) else about.request
        if (key := store.get_key(asked.key_id)) is None:
            return None
        if isinstance(about, Batch):
            tags = {"tenant": about.tenant, "request_id": about.request_id}
            payload = self._batch_payload_builder(about, key.webhook_secret, now)
        else:
            tags = about.tags
            payload = self._payload_builders[about.request.dialect](about, key.webhook_secret, now)
        headers = payload.headers | {"X-Request-Id": asked.request_id}
        return WebhookPayload(payload.body, headers), tags
