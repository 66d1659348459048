"""Pictures of the page for the documentation: every view at a desk's and a phone's width, in light and dark.

    python -m scripts.release.screenshots FOLDER

Starts a server of its own with the tiny model and drives Chromium through a story with the bundled demo. The
documentation's were made with the fonts Inter and Liberation (Debian: fonts-inter, fonts-liberation).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import wave
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.support.live_server import LiveServer
from tests.support.polling import wait_until

ROOT = Path(__file__).parents[2]
VIDEO, VOICE = ROOT / "demo" / "presenter.mp4", ROOT / "demo" / "voice.wav"
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
CHROMIUM_ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                 "--autoplay-policy=no-user-gesture-required"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        live = LiveServer(Path(data), drain_s=0)
        live.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGS)
        try:
            live.wait_ready()
            job = _history(live)
            for theme in ("light", "dark"):
                for size, (width, height) in SIZES.items():
                    _tour(browser, live, job, folder, theme, size, width, height)
            _watching(browser, live, folder)
        finally:
            browser.close()
            live.stop()
    for path in sorted(folder.glob("*.png")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _history(live: LiveServer) -> str:
    """One film, one failure, one cancelled job; the film's id."""
    video, voice = live.upload(VIDEO), live.upload(VOICE)
    job = live.submit(video, voice, title="Welcome to the team", inference_steps=4, seed=7)
    failed = live.submit(voice, voice, title="Newsletter, November")
    cancelled = live.submit(video, voice, title="Draft")
    live.request("POST", f"/api/v3/predictions/{cancelled}/cancel")
    for one in (job, failed, cancelled):
        live.wait_for_job(one)
    live.request("POST", "/admin/keys?name=Dubbing%20studio&tenant=dubbing")
    live.request("POST", "/admin/keys?name=Build%20server&scopes=run%20read")
    return job


def _open(browser: Any, live: LiveServer, theme: str, width: int, height: int) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        reduced_motion="reduce",
        device_scale_factor=1,
        locale="en-GB",
    )
    page: Page = context.new_page()
    page.goto(live.base)
    return page


def _enter(page: Page, live: LiveServer) -> None:
    page.fill("#key", live.key)
    page.click("button[type=submit]")
    page.wait_for_selector("#go")


def _tour(
    browser: Any, live: LiveServer, job: str, folder: Path, theme: str, size: str, width: int, height: int
) -> None:
    page = _open(browser, live, theme, width, height)

    def shoot(name: str) -> None:
        page.screenshot(path=folder / f"{name}-{size}-{theme}.png", full_page=size == "phone")

    page.wait_for_selector("#key")
    page.evaluate("document.activeElement.blur()")
    shoot("enter")
    _enter(page, live)
    shoot("create-empty")
    page.set_input_files("#file-video", VIDEO)
    page.set_input_files("#file-audio", VOICE)
    for role in ("video", "audio"):
        ready = f"document.querySelector('[data-field={role}] {role}')?.readyState === 4"
        wait_until(lambda ready=ready: page.evaluate(ready), "a file was not shown", 20, 0.05)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)  # until players have taken their spinners away
    shoot("create")
    page.evaluate("(id) => { location.hash = `#/jobs/${id}`; }", job)
    drawn = "document.querySelector('.after video')?.readyState === 4"
    drawn += " && document.querySelector('.wave-line')?.width"
    wait_until(lambda: page.evaluate(drawn), "the film was not shown", 30, 0.05)
    page.evaluate("document.querySelector('.after video').currentTime = 3.4")
    there = "Math.abs(document.querySelector('.before video').currentTime - 3.4) < 0.1"
    wait_until(lambda: page.evaluate(there), "the original did not follow", 30, 0.05)
    page.wait_for_selector(".badge")
    page.wait_for_timeout(500)  # until the decoders have shown what they were asked for
    shoot("compare")
    for view, sign in (("jobs", ".rows li"), ("keys", ".rows li"), ("health", ".tile")):
        page.evaluate("(view) => { location.hash = `#/${view}`; }", view)
        page.wait_for_selector(sign)
        page.wait_for_load_state("networkidle")
        shoot(view)
    page.context.close()


def _watching(browser: Any, live: LiveServer, folder: Path) -> None:
    """A job in the middle: the first segment plays while the second is made."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as twice:
        _repeated(VOICE, Path(twice.name), 2)
        voice = live.upload(Path(twice.name))
    job = live.submit(live.upload(VIDEO), voice, title="Welcome to the team", inference_steps=4)
    page = _open(browser, live, "light", *SIZES["desk"])
    _enter(page, live)
    page.evaluate("(id) => { location.hash = `#/jobs/${id}`; }", job)
    playing = "(document.querySelector('.screen video')?.currentTime ?? 0) > 1"
    wait_until(lambda: page.evaluate(playing), "the preview did not play", 300, 0.05)
    page.screenshot(path=folder / "watch-desk-light.png")
    for size, theme in (("phone", "dark"), ("desk", "dark")):
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.screenshot(path=folder / f"watch-{size}-{theme}.png", full_page=size == "phone")
    live.request("POST", f"/api/v3/predictions/{job}/cancel")
    page.context.close()


def _repeated(voice: Path, output: Path, times: int) -> None:
    with wave.open(str(voice)) as source, wave.open(str(output), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getnframes()) * times)


if __name__ == "__main__":
    main()
