"""A page in a browser, and everything it did that it should not have done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.polling import wait_until


@dataclass
class Tab:
    """A page with records of its messages and requests.

    Attributes:
        page: Playwright's page.
        messages: errors and warnings of the console, and uncaught exceptions.
        foreign_requests: URLs that do not belong to the server.
        expected_messages: patterns of messages that a test provokes on purpose.
    """

    page: Any
    base: str
    messages: list[str] = field(default_factory=list)
    foreign_requests: list[str] = field(default_factory=list)
    expected_messages: list[str] = field(default_factory=list)

    def record(self) -> None:
        """Record messages (violations of the content security policy are among them) and requests."""
        self.page.on("console", lambda message: self._on_console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self._on_request(request.url))

    def _on_console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.messages.append(text)

    def _on_request(self, url: str) -> None:
        if not url.startswith((f"{self.base}/", "blob:", "data:")):
            self.foreign_requests.append(url)

    def wait(self, expression: str, timeout_s: float = 120) -> Any:
        """Wait until a JavaScript expression is true; its value.

        Playwright's own waiting needs eval, which the page's policy forbids.
        """
        wait_until(lambda: self.page.evaluate(expression), f"never true: {expression}", timeout_s, 0.05)
        return self.page.evaluate(expression)

    def go(self, view: str) -> None:
        """Open another view, and wait until it has replaced the last one."""
        self.page.evaluate(
            "(view) => { window.left = document.querySelector('main').firstChild; location.hash = view; }",
            view,
        )
        self.wait("document.querySelector('main').firstChild !== window.left")

    def check(self) -> None:
        """Assert that there were no unexpected messages and no foreign requests."""
        expected = self.expected_messages
        unexpected = [text for text in self.messages if not any(re.search(e, text) for e in expected)]
        assert (unexpected, self.foreign_requests) == ([], [])


OpenTab = Callable[..., Tab]
