"""Jobs and requests as the store keeps them."""

from __future__ import annotations

import itertools

from server.jobs.request import InputSource, MediaLimits, Options, Request, Role, SpeechInterval
from server.jobs.state import Failure, Job, JobPolicy

POLICY = JobPolicy(lease_s=60, max_attempts=3, max_wait_s=1000, max_run_s=500)
REQUEST = Request(
    dialect="wavespeed",
    dialect_state='{"model": "a/b"}',
    endpoint="a/b",
    sources=(
        InputSource(
            "video",
            Role.VIDEO,
            url="https://h.example/v.mp4",
            limits=MediaLimits(formats=("mp4",), max_s=10.0),
        ),
        InputSource("audio", Role.AUDIO, blob="up/1.wav"),
    ),
    key_id="0123456789abcdef",
    segments=(SpeechInterval("audio", "left", 0.0, 1.5),),
    options=Options(guidance_scale=1.5, fps="30000/1001"),
    webhook_url="https://h.example/hook",
)
NO_FACE = Failure("no_face", "No face was found.")
numbers = itertools.count(1)


def new_job(tenant: str = "studio", at: float = 100.0, priority: int = 0) -> Job:
    return Job(id=f"{next(numbers):032x}", tenant=tenant, created_at=at, priority=priority)
