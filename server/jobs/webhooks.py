"""Webhook delivery from the outbox: at least once, with exponential back-off for about 24 hours.

Entries are inserted in the commit that ends a job or batch, so a crash loses none. The dialect of the job
builds and signs the body anew for every attempt. The module knows no dialect by name and opens no connection
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.jobs.service import JobService
from server.jobs.state import Batch
from server.storage.transport import Transport, TransportError
from server.store import DatabaseUnavailableError, OutboxEntry, Record

log = logging.getLogger("lipsync.webhooks")

RETRY_DELAYS_S = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""Delays after failed attempts. The first three are contract; the last attempt is about a day later."""

JITTER = 0.2
"""Each delay is up to this part longer, so that a recovered receiver does not get all webhooks at once."""

POLL_INTERVAL_S = 30.0
MAX_CONCURRENT = 32
MAX_PER_TENANT = 4
"""Deliveries of one tenant at once: receivers that do not answer hold up only their own tenant's."""

HOLD_S = 60.0
"""How long a process that has claimed an entry keeps it; a delivery takes at most a sixth of it."""


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
    """Delivers webhooks until cancelled.

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
        self._active: Counter[str] = Counter()  # deliveries by tenant

    async def run(self) -> None:
        """Deliver webhooks as they become due, for ever."""
        try:
            async with asyncio.TaskGroup() as deliveries:
                while True:
                    self._jobs.webhook_due.clear()
                    for entry in await self._jobs.write(self._claim):
                        self._active[entry.tenant] += 1
                        deliveries.create_task(self._deliver_and_release(entry))
                    timeout_s = self._until_next_s()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._jobs.webhook_due.wait(), timeout_s)
        finally:
            self._active.clear()

    def _claim(self) -> list[OutboxEntry]:
        """Claim at most one entry of each tenant that has fewer than its share of deliveries."""
        store, free = self._jobs.store, MAX_CONCURRENT - self._active.total()
        if free <= 0:
            return []
        return store.claim_webhooks(store.now(), free, HOLD_S, self._busy_tenants())

    def _busy_tenants(self) -> list[str]:
        return [tenant for tenant, active in self._active.items() if active >= MAX_PER_TENANT]

    def _until_next_s(self) -> float:
        """Return the seconds until the next entry is due; the end of a delivery also wakes the loop."""
        if self._active.total() >= MAX_CONCURRENT:
            return POLL_INTERVAL_S
        due_at = self._jobs.store.next_webhook_at(self._busy_tenants())
        if due_at is None:
            return POLL_INTERVAL_S
        return min(POLL_INTERVAL_S, max(0.05, due_at - self._jobs.now()))

    async def _deliver_and_release(self, entry: OutboxEntry) -> None:
        try:
            await self._deliver(entry)
        except DatabaseUnavailableError as error:
            log.warning("%s: webhook repeated in %g s: %s", entry.subject, HOLD_S, error)
        except Exception:  # one entry must not hold up the others
            log.exception("%s: webhook repeated in %g s", entry.subject, HOLD_S)
        finally:
            self._active[entry.tenant] -= 1
            self._jobs.webhook_due.set()

    async def _deliver(self, entry: OutboxEntry) -> None:
        store = self._jobs.store
        if (delivery := self._build_payload(entry)) is None:
            await self._jobs.write(partial(store.webhook_failed, entry.id, "the job was deleted", None))
            return
        payload, tags = delivery
        try:
            response = await self._transport.post_webhook(entry.url, payload.body, payload.headers)
        except TransportError as error:
            problem: str | None = error.message
            is_permanent = error.is_permanent
        else:
            is_permanent = False
            problem = None if 200 <= response.status < 300 else f"status {response.status}"
        if problem is None:
            await self._jobs.write(partial(store.webhook_delivered, entry.id, self._jobs.now()))
            log.info("%s: webhook delivered", entry.subject, extra=tags)
            return
        due_at = None
        if entry.tries < len(RETRY_DELAYS_S) and not is_permanent:
            due_at = self._jobs.now() + RETRY_DELAYS_S[entry.tries] * random.uniform(1, 1 + JITTER)
        await self._jobs.write(partial(store.webhook_failed, entry.id, problem, due_at))
        log.warning(
            "%s: webhook not delivered, attempt %d: %s", entry.subject, entry.tries + 1, problem, extra=tags
        )

    def _build_payload(self, entry: OutboxEntry) -> tuple[WebhookPayload, dict[str, str]] | None:
        """Build the payload and the tags of log lines; None: its subject was deleted or is unreadable."""
        store, now = self._jobs.store, self._jobs.now()
        subject = store.get(entry.job_id) if entry.job_id else store.get_batch(entry.batch_id or "")
        if subject is None:
            return None
        request = subject if isinstance(subject, Batch) else subject.request
        if (key := store.get_key(request.key_id)) is None:
            return None
        if isinstance(subject, Batch):
            tags = {"tenant": subject.tenant, "request_id": subject.request_id}
            payload = self._batch_payload_builder(subject, key.webhook_secret, now)
        else:
            if (build := self._payload_builders.get(subject.request.dialect)) is None:
                return None
            tags, payload = subject.tags, build(subject, key.webhook_secret, now)
        headers = payload.headers | {"X-Request-Id": request.request_id}
        return WebhookPayload(payload.body, headers), tags
