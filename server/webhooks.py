"""Tells callers that their jobs have ended: at least once, in order of need, over about a day.

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
from functools import partial

from server.board import Board
from server.store import Notice, Record
from server.transport import Transport, TransportError

log = logging.getLogger("lipsync.webhooks")

PAUSES_S = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""After each failed try. The first three are the contract's; the last ends about a day after the first."""

JITTER = 0.2
"""Each pause is up to that much longer, so that receivers that come back are not met by everybody at once."""

LOOK_EVERY_S = 30.0
AT_ONCE = 8
HOLD_S = 60.0
"""So long a notice belongs to the process that delivers it; a delivery takes a sixth of it at most."""

Letter = Callable[[Record, str, float], tuple[bytes, dict[str, str]]]
"""(job, webhook secret, now) → body and headers."""


class Webhooks:
    """Delivers notices until cancelled.

    Args:
        letters: per dialect name, what is sent.
    """

    def __init__(self, board: Board, transport: Transport, letters: dict[str, Letter]) -> None:
        self._board, self._transport, self._letters = board, transport, letters

    async def run(self) -> None:
        while True:
            self._board.notice_came.clear()
            due = await self._board.write(self._claim)
            if due:
                await asyncio.gather(*(self._try(notice) for notice in due))
                continue
            pause_s = self._pause_s()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._board.notice_came.wait(), pause_s)

    def _claim(self) -> list[Notice]:
        store = self._board.store
        return store.claim_notices(store.now(), AT_ONCE, HOLD_S)

    def _pause_s(self) -> float:
        """Until the next notice is due, or for a while."""
        due_at = self._board.store.next_notice_at()
        return LOOK_EVERY_S if due_at is None else min(LOOK_EVERY_S, max(0.05, due_at - self._board.now()))

    async def _try(self, notice: Notice) -> None:
        store = self._board.store
        record = store.get(notice.job_id)
        key = None if record is None else store.key(record.request.key_id)
        if record is None or key is None:
            await self._board.write(partial(store.not_delivered, notice.id, "the job was deleted", None))
            return
        now = self._board.now()
        body, headers = self._letters[record.request.dialect](record, key.webhook_secret, now)
        headers |= {"X-Request-Id": record.request.request_id}
        try:
            delivered = await self._transport.post_webhook(notice.url, body, headers)
        except TransportError as error:
            problem: str | None = error.message
        else:
            problem = None if 200 <= delivered.status < 300 else f"status {delivered.status}"
        if problem is None:
            await self._board.write(partial(store.delivered, notice.id, self._board.now()))
            log.info("job %s: webhook delivered", notice.job_id, extra=record.tags)
            return
        due_at = None
        if notice.tries < len(PAUSES_S):
            due_at = self._board.now() + PAUSES_S[notice.tries] * random.uniform(1, 1 + JITTER)
        await self._board.write(partial(store.not_delivered, notice.id, problem, due_at))
        sentence = "job %s: webhook not delivered (%s), try %d"
        log.warning(sentence, notice.job_id, problem, notice.tries + 1, extra=record.tags)
