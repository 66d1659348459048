"""JSON that can be stored."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from server.api.errors import ApiError
from server.api.schemas import (
    MAX_DEPTH,
    MAX_ECHO_BYTES,
    OPTIONS,
    BodyError,
    EndpointSchema,
    echo_input,
    parse_json,
    validate_job_input,
)


def test_ordinary_json_is_parsed() -> None:
    usual = {"text": "größer 😀 \r\n", "numbers": [1, 2.5, -1], "none": None, "deep": [[[{"a": []}]]]}
    assert parse_json(json.dumps(usual).encode()) == usual
    assert parse_json(json.dumps(usual, ensure_ascii=False).encode()) == usual
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BodyError, match="levels"):
        parse_json(b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2))
    with pytest.raises(BodyError, match="UTF-8"):
        parse_json(json.dumps(usual).encode("utf-16"))


def test_too_many_values_are_rejected_in_bounded_memory() -> None:
    body = b"[" + b"{}," * (10 << 20)
    tracemalloc.start()
    with pytest.raises(BodyError, match="values"):
        parse_json(body)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_stored_input_has_only_known_fields_and_a_bounded_size() -> None:
    schema = EndpointSchema()
    long = "\u00e9" * 100_000
    segment = {"audio": long, "face": long, "start": 1, "end": 2, "junk": long, "list": [long]}
    fields = {
        **dict.fromkeys((*OPTIONS, "video", "audio", "mask_image", "consent", "title"), long),
        "segments": [segment] * 64,
        "face": {"deep": [long]},
        **{f"k{number}": long for number in range(9)},
    }
    echo = echo_input(schema, fields)
    assert len(json.dumps(echo)) <= MAX_ECHO_BYTES
    assert set(echo) == {*schema.options, "video", "audio", "mask_image", "consent", "title", "segments"} - {
        "face"
    }
    assert set(echo["segments"][0]) == {"audio", "face", "start", "end"}
    usual = {"video": "https://h.example/v.mp4", "seed": 3, "title": "take 1"}
    assert echo_input(schema, {**usual, "foo": 1}) == usual


def test_long_urls_and_faces_are_rejected() -> None:
    video, audio = "https://h.example/v.mp4", "https://h.example/a.wav"
    segment = {"audio": audio, "face": "left"}
    for fields in (
        {"video": f"{video}?{'x' * 9000}", "audio": audio},
        {"video": video, "segments": [{"audio": f"{audio}?{'x' * 2000}", "face": "left"}] * 64},
        {"video": video, "segments": [{**segment, "face": "x" * 300}]},
    ):
        with pytest.raises(ApiError) as error:
            validate_job_input(EndpointSchema(), fields, vendor_limits=True)
        assert error.value.status == 400
    validate_job_input(EndpointSchema(), {"video": video, "segments": [segment] * 64}, vendor_limits=True)


def test_every_kind_of_invalid_json_has_its_own_sentence(subtests: pytest.Subtests) -> None:
    for body, problem in [
        (b" ", "is empty"),
        (gzip.compress(b"{}"), "compressed with gzip"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"{'a': 1}", "not JSON: .*line 1, column 2"),
        ('{"a": "\xe4"}'.encode("latin-1"), "not UTF-8"),
        (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "levels deep"),
    ]:
        with subtests.test(problem=problem), pytest.raises(BodyError, match=problem):
            parse_json(body)
