"""Payloads of NOTIFY: processes of two versions may run on one database."""

from __future__ import annotations

import json

from server.jobs.state import State
from server.store import Notification


def test_payload_keeps_the_keys_of_earlier_versions() -> None:
    text = Notification("a" * 32, State.SUCCEEDED, False, 2.5).to_json()
    assert json.loads(text) == {
        "job_id": "a" * 32,
        "state": "succeeded",
        "cancel_asked": False,
        "ran_s": 2.5,
        "help_wanted": False,
    }


def test_payload_of_an_earlier_version_is_read() -> None:
    text = '{"job_id": "b", "state": "running", "cancel_asked": true, "ran_s": null, "help_wanted": true}'
    assert Notification.from_json(text) == Notification("b", State.RUNNING, True, None, True)
