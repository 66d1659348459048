"""A page as its visitor has it, and everything it did that it should not have."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.live_server import until


@dataclass
class Seen:
    """A page, and everything it did that it should not have.

    Attributes:
        expected: messages that a test provokes on purpose.
    """

    page: Any
    base: str
    messages: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Listen to console (where violations of the policy are told, too), errors and requests."""
        self.page.on("console", lambda message: self._told(message.type, message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))

    def _told(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.messages.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.base}/", "blob:", "data:")):
            self.outside.append(url)

    def wait(self, condition: str, seconds: float = 120, otherwise: str = "") -> Any:
        """Until a JavaScript expression is true; its value. (Playwright's own waiting needs eval there.)"""
        until(lambda: self.page.evaluate(condition), otherwise or f"never came: {condition}", seconds, 0.05)
        return self.page.evaluate(condition)

    def go(self, view: str) -> None:
        """Another view, once it stands where the last one did."""
        self.page.evaluate(
            "(view) => { window.left = document.querySelector('main').firstChild; location.hash = view; }",
            view,
        )
        self.wait("document.querySelector('main').firstChild !== window.left")

    def check(self) -> None:
        unexpected = [text for text in self.messages if not any(re.search(e, text) for e in self.expected)]
        assert (unexpected, self.outside) == ([], [])


Open = Callable[..., Seen]
