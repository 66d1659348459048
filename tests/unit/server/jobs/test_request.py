"""Stored requests: rows of earlier versions, and rows that those can read."""

from __future__ import annotations

import json

from server.jobs.request import Request, SpeechInterval
from tests.support.records import REQUEST


def test_request_survives_storage() -> None:
    assert Request.from_json(REQUEST.to_json()) == REQUEST


def test_stored_request_keeps_its_keys() -> None:
    stored = json.loads(REQUEST.to_json())
    assert (stored["said"], stored["label"]) == (REQUEST.dialect_state, REQUEST.endpoint)
    assert set(stored) == {
        "version", "dialect", "said", "label", "sources", "key_id", "segments", "options", "webhook_url",
        "request_id", "consent", "body_digest",
    }  # fmt: skip


def test_request_of_an_earlier_version_is_read() -> None:
    text = """{"dialect": "wavespeed", "said": "{}", "label": "a/b", "sources": [], "key_id": "k",
    "segments": [{"voice": "audio", "face": "left", "start_s": 0.0, "length_s": 1.5}], "options": {}}"""
    request = Request.from_json(text)
    assert (request.dialect_state, request.endpoint, request.consent) == ("{}", "a/b", None)
    assert request.segments == (SpeechInterval("audio", "left", 0.0, 1.5),)
