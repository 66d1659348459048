"""A small share of the campaign of hostile input, the same every time; `make campaign` runs all of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.campaign import media_part, mutations, parsers, tricks
from tests.support.application import Api

EVERY_CASE, EVERY_CALL = 13, 7


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return media_part.make_seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_media_is_accepted_or_ends_with_a_code(seeds: list[Path], tmp_path: Path) -> None:
    secret = media_part.make_secret(tmp_path / "secret")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    selection = list(mutations.cases(seeds, random.Random(1), 400, secret))[::EVERY_CASE]
    assert sum(case.is_trap for case in selection) >= 6
    results = [media_part.strike(case, inbox) for case in selection]
    assert [wrong for _, _, wrong in results if wrong] == []
    assert len({code for code, _, _ in results}) >= 5
    assert list(inbox.iterdir()) == []


def test_equal_seeds_give_equal_files(seeds: list[Path], tmp_path: Path) -> None:
    made_again = media_part.make_seeds(tmp_path)
    assert [path.read_bytes() for path in made_again] == [path.read_bytes() for path in seeds]
    secret = seeds[0]
    first, again = (list(mutations.cases(seeds, random.Random(5), 150, secret)) for _ in range(2))
    assert first == again
    assert first != list(mutations.cases(seeds, random.Random(6), 150, secret))


def test_parsers_accept_or_reject_any_bytes(subtests: pytest.Subtests) -> None:
    for name in parsers.TARGETS:
        with subtests.test(name=name):
            target, samples = parsers.TARGETS[name]
            rng = random.Random(1)
            for sample in samples:
                target(sample)
                for change in (mutations.flip_bits, mutations.cut_out, mutations.repeat, mutations.splice):
                    for _ in range(20):
                        target(bytes(change(bytearray(sample), rng, sample))[: parsers.LARGEST])


def test_fuzzer_checks_can_fail() -> None:
    with pytest.raises(AssertionError):
        parsers._require(False, "this")


def test_hostile_requests_cause_no_5xx(api: Api) -> None:
    calls = [call for call in tricks.calls() if "huge" not in call[0]][::EVERY_CALL]
    kinds = set()
    for kind, method, path, body, headers in calls:
        inputs = {"content": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        try:
            answer = api.client.request(method, path, headers={**api.headers, **headers}, **inputs)
        except UnicodeEncodeError:  # the test's client itself cannot send it
            continue
        assert 200 <= answer.status_code < 500, (kind, path, body)
        kinds.add(kind)
    assert len(kinds) >= 7
    assert api.client.get("/api/native/v1/jobs?limit=100", headers=api.headers).status_code == 200
