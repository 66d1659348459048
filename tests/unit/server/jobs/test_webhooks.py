"""Webhook delivery: a tenant whose receivers do not answer holds up only its own webhooks."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from pathlib import Path

from server.api.auth import create_key
from server.jobs import state as job_state
from server.jobs.service import JobService
from server.jobs.state import JobPolicy
from server.jobs.webhooks import MAX_PER_TENANT, WebhookPayload, Webhooks
from server.storage.transport import Transport, TransportPolicy
from server.store import QueueLimits, Store
from tests.support.records import REQUEST, new_job
from tests.support.webhook_receiver import WebhookReceiver


def end_job(store: Store, tenant: str, url: str, key_id: str, at: float) -> None:
    job = new_job(tenant, at=at)
    store.submit(job, dataclasses.replace(REQUEST, webhook_url=url, key_id=key_id))
    store.change(job.id, at, lambda job: job_state.cancel(job, at))


def test_receivers_that_do_not_answer_delay_only_their_tenant(tmp_path: Path) -> None:
    store, receiver = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), WebhookReceiver()
    _, key = create_key(store, 0.0)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for _ in range(3 * MAX_PER_TENANT):
            end_job(store, "mallory", silent_url, key.id, 100.0)
        for at in (101.0, 102.0, 103.0):
            end_job(store, "bob", receiver.url, key.id, at)

        async def deliver() -> None:
            jobs = JobService(store, JobPolicy(), QueueLimits(), 1)
            async with Transport(TransportPolicy(allow=("127.0.0.1",), webhook_s=60)) as transport:
                build = {"wavespeed": lambda *_: WebhookPayload(b"{}", {})}
                webhooks = Webhooks(jobs, transport, build, lambda *_: WebhookPayload(b"{}", {}))
                task = asyncio.create_task(webhooks.run())
                for _ in range(3):
                    assert await asyncio.to_thread(receiver.arrived.acquire, timeout=10)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            jobs.close()

        asyncio.run(deliver())
    receiver.close()
    store.close()
