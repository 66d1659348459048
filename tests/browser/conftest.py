"""A live server with the tiny model, Debian's Chromium, and a page that records its faults."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser_tab import OpenTab, Tab
from tests.support.live_server import LiveServer

CHROMIUM_ARGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("page"), requests_per_minute=10**6, drain_s=0)
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium for one file: while it is open, an event loop runs in this process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=list(CHROMIUM_ARGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    folder = tmp_path_factory.mktemp("axe")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", AXE]
    result = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"{AXE} cannot be installed: {result.stderr[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
def open_tab(server: LiveServer, browser: Any) -> Iterator[OpenTab]:
    """`open_tab(width=390, dark=True)`: a signed-in page in a context of its own, checked at the end.

    It stands still: drawing movement without a GPU would take the processor from the model.
    """
    tabs: list[Tab] = []

    def open_new_tab(
        *,
        width: int = 1280,
        height: int = 860,
        dark: bool = False,
        key: str | None = None,
        language: str = "en",
        still: bool = True,
    ) -> Tab:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale={"en": "en-GB", "zh": "zh-CN"}[language],
            reduced_motion="reduce" if still else "no-preference",
            permissions=["camera", "microphone"],
        )
        tab = Tab(context.new_page(), server.base)
        tab.page.set_default_timeout(60000)
        tab.record()
        tabs.append(tab)
        tab.page.goto(server.base)
        if key != "":
            tab.page.fill("#key", key or server.key)
            tab.page.click("button[type=submit]")
            tab.page.wait_for_selector("#go")
        return tab

    yield open_new_tab
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        tab.check()
