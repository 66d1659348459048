"""Replays the golden requests of the contract and compares responses, pattern by pattern.

`golden/*.json` holds one request and its response each. `golden/_patterns.json` explains the placeholders.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

GOLDEN = Path(__file__).parent / "golden"
PLACEHOLDER = re.compile(r"\{\{([^{}]+)\}\}")


def load_golden(name: str) -> dict[str, Any]:
    """Load the golden request and response of a name."""
    return dict(json.loads((GOLDEN / f"{name}.json").read_text()))


class Replay:
    """One scenario: values captured in one response are used in the next request.

    Args:
        values: `key`, `base` and whatever the scenario has created.
    """

    def __init__(self, client: TestClient, **values: str) -> None:
        self.client, self.values = client, values
        self.rules: dict[str, str] = load_golden("_patterns")["rules"]

    def play(self, name: str) -> Any:
        """Send the request, assert the response, return its JSON."""
        golden = load_golden(name)
        request, expected = golden["request"], golden["response"]
        body: dict[str, Any] = {"headers": self.fill(request.get("headers", {}))}
        if "json" in request:
            body["json"] = self.fill(request["json"])
        elif "raw" in request:
            body["content"] = request["raw"]
        elif "bytes" in request:
            body["content"] = bytes(request["bytes"])
        elif "multipart" in request:
            part = request["multipart"]["file"]
            body["files"] = {"file": (part["filename"], bytes(part["bytes"]))}
        url = self.fill(request.get("path") or request["url"])
        response = self.client.request(request["method"], url, **body)
        assert response.status_code == expected["status"], response.text
        for header, pattern in expected.get("headers", {}).items():
            self.match(pattern, response.headers.get(header), header)
        if "json" in expected:
            self.elements = {key: value for key, value in golden.items() if isinstance(value, dict)}
            self.match(expected["json"], response.json(), "")
            return response.json()
        return None

    def fill(self, value: Any) -> Any:
        """Replace the placeholders of a request."""
        if isinstance(value, dict):
            return {name: self.fill(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.fill(part) for part in value]
        if not isinstance(value, str):
            return value
        return PLACEHOLDER.sub(lambda match: self._value(match[1]), value)

    def _value(self, name: str) -> str:
        key = name.partition(":")[2] or name
        return self.values.get(key, "aGVsbG8=" if name == "base64" else "")

    def match(self, expected: Any, actual: Any, path: str) -> None:
        """Assert that a value matches; `path` locates it in the response."""
        if isinstance(expected, dict):
            assert isinstance(actual, dict), f"{path}: {actual!r}"
            for name, part in expected.items():
                assert name in actual, f"{path}.{name} is missing in {actual}"
                self.match(part, actual[name], f"{path}.{name}")
        elif isinstance(expected, list):
            self._match_list(expected, actual, path)
        elif isinstance(expected, str) and "{{" in expected:
            self._match_pattern(expected, actual, path)
        else:
            assert type(actual) is type(expected), f"{path}: {actual!r} instead of {expected!r}"
            assert actual == expected, path

    def _match_list(self, expected: list[Any], actual: Any, path: str) -> None:
        assert isinstance(actual, list), path
        if path.endswith("data"):  # models: by membership
            assert any(self._is_match(expected[0], part) for part in actual), path
        elif expected and isinstance(expected[0], str) and expected[0].startswith("{{array-of:"):
            element = self.elements[expected[0].removeprefix("{{array-of:").removesuffix("}}")]
            for part in actual:
                self.match(element, part, path)
        else:
            assert len(actual) == len(expected), f"{path}: {actual}"
            for number, (a, b) in enumerate(zip(expected, actual, strict=True)):
                self.match(a, b, f"{path}[{number}]")

    def _is_match(self, expected: Any, actual: Any) -> bool:
        try:
            self.match(expected, actual, "element")
        except AssertionError:
            return False
        return True

    def _match_pattern(self, expected: str, actual: Any, path: str) -> None:
        if expected in ("{{int}}", "{{number}}"):
            kinds = (int,) if expected == "{{int}}" else (int, float)
            assert isinstance(actual, kinds), f"{path}: {actual!r}"
            assert not isinstance(actual, bool), path
            assert actual >= 0, path
            return
        if expected == "{{object}}":
            assert isinstance(actual, dict), path
            return
        assert isinstance(actual, str), f"{path}: {actual!r}"
        pattern, position, captures = "", 0, []
        for placeholder in PLACEHOLDER.finditer(expected):
            pattern += re.escape(expected[position : placeholder.start()])
            pattern += self._expression(placeholder[1], captures)
            position = placeholder.end()
        match = re.fullmatch(pattern + re.escape(expected[position:]), actual, re.DOTALL)
        assert match, f"{path}: {actual!r} does not match {expected!r}"
        for name in captures:
            value = match[f"capture_{name}"]
            assert self.values.setdefault(name, value) == value, f"{path}: another {name}"

    def _expression(self, name: str, captures: list[str]) -> str:
        """The regular expression of a placeholder; captured names are added to `captures`."""
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
        captures.append(capture)
        return f"(?P<capture_{capture}>{rule})"
