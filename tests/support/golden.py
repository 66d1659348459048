"""Replays the contract's golden requests and compares answers, pattern by pattern."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.testclient import TestClient

from tests.support.paths import SHARED

FOLDER = SHARED / "contract" / "golden"
PATTERN = re.compile(r"\{\{([^{}]+)\}\}")


class Replay:
    """One scenario: values captured by one answer are used in the next.

    Args:
        values: of `key`, `base` and whatever a scenario has made.
    """

    def __init__(self, client: TestClient, **values: str) -> None:
        self.client, self.values = client, values
        self.rules: dict[str, str] = json.loads((FOLDER / "_patterns.json").read_text())["rules"]

    def play(self, name: str) -> Any:
        """Send the request; assert the answer; give its JSON."""
        golden = json.loads((FOLDER / f"{name}.json").read_text())
        asked, wanted = golden["request"], golden["response"]
        given: dict[str, Any] = {"headers": self.filled(asked.get("headers", {}))}
        if "json" in asked:
            given["json"] = self.filled(asked["json"])
        elif "raw" in asked:
            given["content"] = asked["raw"]
        elif "bytes" in asked:
            given["content"] = bytes(asked["bytes"])
        elif "multipart" in asked:
            part = asked["multipart"]["file"]
            given["files"] = {"file": (part["filename"], bytes(part["bytes"]))}
        place = self.filled(asked.get("path") or asked["url"])
        answer = self.client.request(asked["method"], place, **given)
        assert answer.status_code == wanted["status"], answer.text
        for header, pattern in wanted.get("headers", {}).items():
            self.match(pattern, answer.headers.get(header), header)
        if "json" in wanted:
            self.elements = {key: value for key, value in golden.items() if isinstance(value, dict)}
            self.match(wanted["json"], answer.json(), "")
            return answer.json()
        return None

    def filled(self, value: Any) -> Any:
        """A request with its placeholders replaced."""
        if isinstance(value, dict):
            return {name: self.filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part) for part in value]
        if not isinstance(value, str):
            return value
        return PATTERN.sub(lambda match: self._value(match[1]), value)

    def _value(self, name: str) -> str:
        key = name.partition(":")[2] or name
        return self.values.get(key, "aGVsbG8=" if name == "base64" else "")

    def match(self, wanted: Any, got: Any, where: str) -> None:
        if isinstance(wanted, dict):
            assert isinstance(got, dict), f"{where}: {got!r}"
            for name, part in wanted.items():
                assert name in got, f"{where}.{name} is missing in {got}"
                self.match(part, got[name], f"{where}.{name}")
        elif isinstance(wanted, list):
            self._match_list(wanted, got, where)
        elif isinstance(wanted, str) and "{{" in wanted:
            self._match_pattern(wanted, got, where)
        else:
            assert type(got) is type(wanted), f"{where}: {got!r} instead of {wanted!r}"
            assert got == wanted, where

    def _match_list(self, wanted: list[Any], got: Any, where: str) -> None:
        assert isinstance(got, list), where
        if where.endswith("data"):  # models: by membership
            assert any(self._is_match(wanted[0], part) for part in got), where
        elif wanted and isinstance(wanted[0], str) and wanted[0].startswith("{{array-of:"):
            element = self.elements[wanted[0].removeprefix("{{array-of:").removesuffix("}}")]
            for part in got:
                self.match(element, part, where)
        else:
            assert len(got) == len(wanted), f"{where}: {got}"
            for number, (a, b) in enumerate(zip(wanted, got, strict=True)):
                self.match(a, b, f"{where}[{number}]")

    def _is_match(self, wanted: Any, got: Any) -> bool:
        try:
            self.match(wanted, got, "element")
        except AssertionError:
            return False
        return True

    def _match_pattern(self, wanted: str, got: Any, where: str) -> None:
        if wanted in ("{{int}}", "{{number}}"):
            kinds = (int,) if wanted == "{{int}}" else (int, float)
            assert isinstance(got, kinds), f"{where}: {got!r}"
            assert not isinstance(got, bool), where
            assert got >= 0, where
            return
        if wanted == "{{object}}":
            assert isinstance(got, dict), where
            return
        assert isinstance(got, str), f"{where}: {got!r}"
        pattern, at, captured = "", 0, []
        for found in PATTERN.finditer(wanted):
            pattern += re.escape(wanted[at : found.start()]) + self._expression(found[1], captured)
            at = found.end()
        matched = re.fullmatch(pattern + re.escape(wanted[at:]), got, re.DOTALL)
        assert matched, f"{where}: {got!r} does not match {wanted!r}"
        for name in captured:
            value = matched[f"capture_{name}"]
            assert self.values.setdefault(name, value) == value, f"{where}: another {name}"

    def _expression(self, name: str, captured: list[str]) -> str:
        if name in self.values:
            return re.escape(self.values[name])
        if name == "string":
            return ".+"
        if name == "string?":
            return ".*"
        if name.startswith("string~"):
            return f".*{re.escape(name.removeprefix('string~'))}.*"
        kind, colon, capture = name.partition(":")
        rule = self.rules["{{" + kind + "}}"].removeprefix("^").removesuffix("$")
        if not colon:
            return f"(?:{rule})"
        captured.append(capture)
        return f"(?P<capture_{capture}>{rule})"
