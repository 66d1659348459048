"""The page in a real browser, against a live server: all that a visitor does, from signing in on."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import Live, until
from tests.support.paths import ROOT
from tests.support.visitor import Open, Seen

PLAYGROUND = ROOT / "server" / "playground"
Ffmpeg = Callable[..., None]

LONG_S = 4.8
"""Two segments, of 60 frames each."""

APART_S = """(() => {
    const [original, result] = ['.before video', '.after video'].map((one) => document.querySelector(one));
    const turn = Math.floor(result.currentTime / original.duration);
    const within = result.currentTime - turn * original.duration;
    return Math.abs((turn % 2 ? original.duration - within : within) - original.currentTime);
})()"""
"""How far original and result are apart, where the original goes back and forth."""

PAINTED = """(() => {
    const canvas = document.querySelector('.wave-line');
    if (!canvas?.width) return false;
    return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean);
})()"""


@pytest.fixture(scope="session")
def long_voice(tmp_path_factory: pytest.TempPathFactory, voice: Path, ffmpeg: Ffmpeg) -> Path:
    path = tmp_path_factory.mktemp("long") / "voice.wav"
    ffmpeg("-stream_loop", -1, "-i", voice, "-t", LONG_S, path)
    return path


def pick(seen: Seen, video: Path, voice: Path, steps: int) -> None:
    for role, file in (("video", video), ("audio", voice)):
        if seen.page.query_selector(f"#file-{role}"):
            seen.page.set_input_files(f"#file-{role}", file)
    if not seen.page.is_visible("#option-inference_steps"):
        seen.page.click(".more summary")
    seen.page.fill("#option-inference_steps", str(steps))


def start(seen: Seen, video: Path, voice: Path, steps: int) -> str:
    """Fill in the form, submit; the job's id."""
    pick(seen, video, voice, steps)
    seen.page.click("#go")
    seen.page.wait_for_selector(".job[data-job]")
    return str(seen.page.get_attribute(".job", "data-job"))


def previews(live: Live) -> list[Path]:
    return [path for path in (live.data_dir / "blobs" / "previews").rglob("*") if path.is_file()]


def test_a_wrong_key(opened: Open) -> None:
    seen = opened(key="")
    seen.expected.append("401")
    seen.page.fill("#key", "sk_nobody")
    seen.page.click("button[type=submit]")
    seen.page.wait_for_selector(".enter .problem:not(:empty)")
    assert "not valid" in seen.page.inner_text(".enter .problem")
    assert seen.page.evaluate("sessionStorage.length") == 0


def test_from_upload_to_deletion(
    live: Live, opened: Open, clip: Path, long_voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    seen = opened()
    page = seen.page
    live.wait_ready()

    # Refused before anything is uploaded.
    page.click("#go")
    assert page.locator(".slot.wrong").count() == 2
    assert page.evaluate("document.activeElement.id") == "file-video"
    page.check("input[value=image]", force=True)
    assert page.inner_text(".status") == ""
    page.check("input[value=video]", force=True)
    assert "drawn presenters only" in page.inner_text(".summary")
    notes = tmp_path / "notes.mp4"
    notes.write_text("not a film")
    page.set_input_files("#file-video", notes)
    seen.wait("document.querySelector('[data-field=video] .problem').textContent.includes('no video')")
    page.click("[aria-label='Remove Video']")
    page.select_option("#model", "kwaivgi/kling-lipsync/audio-to-video")
    page.set_input_files("#file-video", clip)
    seen.wait(
        "document.querySelector('[data-field=video] .problem').textContent.includes('320 × 320 pixels')"
    )
    page.click("[aria-label='Remove Video']")
    page.select_option("#model", "wavespeed-ai/latentsync")
    pick(seen, clip, long_voice, 51)
    page.click("#go")
    assert "Between 1 and 50" in page.inner_text(".more .problem:not(:empty)")

    # Watched while it is made.
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    began = time.monotonic()
    job = start(seen, clip, long_voice, 2)
    stages = set()

    def plays() -> bool:
        stages.add(page.evaluate("document.querySelector('.steps .now')?.textContent ?? ''"))
        assert page.query_selector(".compare") is None, "it was done before anything could be watched"
        return bool(page.evaluate("(document.querySelector('.screen video')?.currentTime ?? 0) > 0.3"))

    until(plays, "the first segment did not play", 120, 0.03)
    first_picture_s = time.monotonic() - began
    assert live.look(job)["status"] == "processing"
    buffered = "document.querySelector('.screen video').buffered"
    start_s, stop_s = page.evaluate(f"[{buffered}.start(0), {buffered}.end(0)]")
    assert (start_s, round(stop_s, 1)) == (0, 2.4)
    assert "2.4 s can be watched" in page.inner_text(".ready")
    assert {"Faces", "Lips"} <= stages
    seen.wait("document.querySelector('.watch progress').value > 60")
    seen.wait("document.querySelector('.compare')")
    whole_s = time.monotonic() - began
    print(f"{LONG_S} s of film: first picture after {first_picture_s:.1f} s, the end after {whole_s:.1f} s")
    assert len([url for url in asked if url.endswith("/events")]) == 1
    until(lambda: not previews(live), "previews are left", 10)

    # Measured.
    seen.wait(r"/^Lips fit the voice: \d+\.\d/.test(document.querySelector('.fit')?.textContent)")
    painted = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some((value) => value)"
    seen.wait(f"((c) => c.width > 0 && {painted})(document.querySelector('.fit-line'))")

    # Marked.
    page.wait_for_selector(".badge.trusted")
    assert page.inner_text(".badge") == "Signed as generated"
    assert "development certificate" in page.inner_text(".credentials")
    assert "Model tiny" in page.inner_text(".credentials")

    # Compared.
    seen.wait("document.querySelector('.after video').readyState === 4")
    page.locator(".split").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.stage').style.getPropertyValue('--split')") == "55%"
    page.click(".segmented label:has(input[value=beside])")
    page.click(".transport .round")
    seen.wait("document.querySelector('.after video').currentTime > 1.3")
    page.click(".transport .round")
    seen.wait(f"{APART_S} < 0.1")
    seen.expected.append("Canvas2D: Multiple readback")  # by this very look
    assert seen.wait(PAINTED)
    with page.expect_download() as download:
        page.click(".below a[download]")
    assert download.value.suggested_filename == "clip + voice.mp4"
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
    page.click(".code summary")
    for name, part in (
        ("Python", "wavespeed.Client("),
        ("JavaScript", "new Client("),
        ("curl", "curl -X POST"),
    ):
        page.click(f".code label:has(input[value={name}])")
        assert part in page.inner_text(".code pre")
        assert live.key not in page.inner_text(".code pre")

    # Found again, made again with changes, deleted.
    seen.go("#/jobs")
    row = f"[data-job='{job}']"
    page.wait_for_selector(row)
    assert page.evaluate(f"document.querySelector(\"{row} img\").src.includes('/stills/')")
    assert "4.8\u00a0s long" in page.inner_text(f"{row} .facts")
    page.fill("#filter-text", "nothing like it")
    page.wait_for_selector(".jobs .empty")
    page.fill("#filter-text", "CLIP +")
    page.wait_for_selector(row)
    page.click(f"{row} a.button")
    page.wait_for_selector("#go")
    assert page.input_value("#option-inference_steps") == "2"
    assert page.input_value("#title") == "clip + voice"
    assert page.locator(".slot video").count() == 1
    seen.go("#/jobs")
    page.wait_for_selector(row)
    for _ in range(2):
        page.click(f"{row} button")
    until(lambda: page.query_selector(row) is None, "it is still listed", 20, 0.05)
    assert live.call("GET", f"/api/v3/predictions/{job}/result")[0] == 404


def test_cancelling(live: Live, opened: Open, clip: Path, voice: Path) -> None:
    seen = opened()
    live.wait_ready()
    job = start(seen, clip, voice, 50)
    seen.page.wait_for_selector(".watch .button")
    seen.wait("document.querySelector('.steps .now')?.textContent === 'Lips'")
    seen.page.click(".watch .button")
    seen.page.wait_for_selector(".pill.cancelled")
    assert live.look(job)["status"] == "cancelled"
    until(lambda: not previews(live), "previews are left", 10)


@pytest.mark.slow
def test_the_server_restarts_in_the_middle(live: Live, opened: Open, clip: Path, long_voice: Path) -> None:
    """Nobody touches the page: it says what is wrong, comes back by itself, and plays on."""
    seen = opened()
    seen.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE",
                      "ERR_CONNECTION_RESET"]  # fmt: skip
    live.wait_ready()
    job = start(seen, clip, long_voice, 2)
    seen.wait("document.querySelector('.screen video')?.buffered.length > 0")
    live.stop(signal.SIGKILL)
    seen.page.wait_for_selector(".job .banner:not([hidden])")
    live.start_again()
    seen.wait("document.querySelector('.job > .banner').hidden")
    seen.page.wait_for_selector(".watch .banner:not([hidden])")
    assert "earlier attempt was interrupted" in seen.page.inner_text(".watch .banner")
    seen.page.wait_for_selector(".compare", timeout=120000)
    assert live.look(job)["status"] == "completed"


@pytest.mark.slow
def test_without_streams_it_asks_again_and_again(live: Live, opened: Open, clip: Path, voice: Path) -> None:
    """As behind a proxy that lets no stream through; the voice is recorded here."""
    seen = opened()
    seen.expected.append("ERR_FAILED")
    seen.page.route("**/events", lambda route: route.abort())
    live.wait_ready()
    seen.page.click("[data-field=audio] .pick > button")
    seen.page.wait_for_selector(".recorder")
    seen.wait("document.querySelector('.recording').textContent.includes('1 s')")
    seen.page.click(".recorder .primary")
    seen.page.wait_for_selector("[data-field=audio] audio")
    assert "recording.webm" in seen.page.inner_text("[data-field=audio] .named")
    seen.page.set_input_files("#file-video", clip)
    seen.page.click(".more summary")
    seen.page.fill("#option-inference_steps", "1")
    seen.page.click("#go")
    seen.page.wait_for_selector(".compare", timeout=120000)


def test_a_failure_in_plain_words(
    live: Live, opened: Open, clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """Two speakers are asked for where there is one: it says so, and the form comes back as it was."""
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    seen = opened()
    page = seen.page
    live.wait_ready()
    page.check("input[value=several]", force=True)
    page.select_option("#model", "wavespeed-ai/infinitetalk/multi")
    page.set_input_files("#file-image", portrait)
    for role in ("left_audio", "right_audio"):
        page.set_input_files(f"#file-{role}", voice)
    page.click(".more summary")
    page.select_option("#option-order", "left_right")
    with page.expect_request("**/api/v3/wavespeed-ai/infinitetalk/multi") as submitted:
        page.click("#go")
    form = submitted.value.post_data_json
    assert set(form) >= {"image", "left_audio", "right_audio", "title"}
    assert form["order"] == "left_right"
    page.wait_for_selector(".panel.bad", timeout=120000)
    assert "face_choice_unmatched" in page.inner_text(".panel.bad")
    page.click("text=Again, with changes")
    page.wait_for_selector("#go")
    assert page.is_checked("input[value=several]")
    assert page.input_value("#option-order") == "left_right"
    assert page.locator(".slot .shown").count() == 3


def test_two_people_of_a_video(opened: Open, clip: Path, voice: Path) -> None:
    """Each voice becomes a segment with a face; with one face there it fails, and comes back as it was."""
    seen = opened()
    page = seen.page
    page.check("input[value=several]", force=True)
    page.set_input_files("#file-video", clip)
    for role in ("left_audio", "right_audio"):
        page.set_input_files(f"#file-{role}", voice)
    with page.expect_request("**/api/v3/bytedance/lipsync/audio-to-video") as submitted:
        page.click("#go")
    segments = submitted.value.post_data_json["segments"]
    assert [segment["face"] for segment in segments] == ["left", "right"]
    assert segments[0]["audio"] != segments[1]["audio"]
    page.wait_for_selector(".panel.bad", timeout=60000)
    page.click("text=Again, with changes")
    page.wait_for_selector("#go")
    assert page.is_checked("input[value=several]")
    assert page.locator(".media .slot .shown").count() == 3


def test_keys(live: Live, opened: Open) -> None:
    seen = opened()
    page = seen.page
    seen.go("#/keys")
    page.wait_for_selector(".key-form")
    page.fill("#key-name", "render farm")
    page.click(".key-form button")
    page.wait_for_selector(".secret")
    key = page.inner_text(".secret")
    assert key.startswith("sk_")
    headers = {"Authorization": f"Bearer {key}"}
    status, me = live.call("GET", "/api/native/v1/me", **headers)
    assert (status, me["name"], me["scopes"]) == (200, "render farm", ["read", "run"])
    row = f"[data-key='{me['key_id']}']"
    page.click("text=I have it")
    assert key not in page.content()
    for _ in range(2):
        page.click(f"{row} button")
    page.wait_for_selector(f"{row}.ended")
    assert "Revoked" in page.inner_text(row)
    assert live.call("GET", "/api/native/v1/me", **headers)[0] == 401


def test_a_key_without_rights_sees_what_it_may(live: Live, opened: Open) -> None:
    _, made = live.call("POST", "/admin/keys?tenant=guests&scopes=read")
    seen = opened(key=made["key"])
    assert seen.page.is_disabled("#go")
    seen.go("#/keys")
    seen.page.wait_for_selector(".empty")
    assert "guests" in seen.page.inner_text(".empty")
    seen.go("#/jobs")
    seen.page.wait_for_selector(".jobs")
    assert seen.page.query_selector("#filter-tenants") is None


# --- for everybody ---


@pytest.fixture(scope="module")
def finished(live: Live, clip: Path, voice: Path) -> str:
    live.wait_ready()
    job = live.submit(live.upload(clip), live.upload(voice), inference_steps=1, prompt="Smile.")
    failed = live.submit(live.upload(voice), live.upload(voice))
    for one in (job, failed):
        live.wait(one)
    return job


def views(job: str) -> dict[str, str]:
    """Where each view is, and what shows that it is there."""
    return {"#/create": "#go", f"#/jobs/{job}": ".wave-line", "#/jobs": ".rows li", "#/keys": ".rows li",
            "#/health": ".tile"}  # fmt: skip


def test_what_was_not_done_is_said(opened: Open, finished: str) -> None:
    seen = opened()
    seen.go(f"#/jobs/{finished}")
    seen.page.wait_for_selector(".banner:not([hidden])")
    assert "prompt" in seen.page.inner_text(".banner:not([hidden])")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(dark: bool, opened: Open, finished: str, axe: str) -> None:
    seen = opened(dark=dark, language="en")
    page = seen.page
    page.evaluate(axe)
    found: list[str] = []

    def examine(view: str) -> None:
        told = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        for violation in told["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = json.dumps([node["html"][:150] for node in violation["nodes"][:3]])
                found.append(f"{view}: {violation['id']} {nodes}")

    for view, sign in views(finished).items():
        seen.go(view)
        page.wait_for_selector(sign)
        if view == "#/create":
            page.click("#go")  # with refusals
            page.click(".more summary")
        if sign == ".wave-line":
            page.click(".code summary")
        examine(view)
    page.click("text=Sign out")
    page.wait_for_selector("#key")
    examine("signing in")
    assert found == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_scrolls_sideways_on_a_phone(language: str, opened: Open, finished: str) -> None:
    seen = opened(width=390, height=844, language=language)
    for view, sign in views(finished).items():
        seen.go(view)
        seen.page.wait_for_selector(sign)
        for closed in seen.page.query_selector_all("main details summary"):
            closed.click()
        wide = seen.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, view
    assert seen.page.get_attribute("html", "lang") == {"en": "en", "zh": "zh-Hans"}[language]


def test_the_keyboard_is_enough(opened: Open) -> None:
    """From the top of the page to the form's button, and every stop can be seen."""
    seen = opened()
    stops = []
    seen.page.evaluate("document.querySelector('.skip').focus()")
    assert seen.page.evaluate("document.querySelector('.skip').getBoundingClientRect().top") >= 0
    for _ in range(25):
        seen.page.keyboard.press("Tab")
        stops.append(seen.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if stops[-1] == "go":
            break
    assert stops[1] == "Create"
    assert {"file-video", "file-audio", "model", "go"} <= set(stops), stops


def test_less_motion_where_that_is_wished(opened: Open) -> None:
    seen = opened()
    moving = "document.getAnimations().length"
    seen.page.click("#go")
    assert seen.page.evaluate("getComputedStyle(document.querySelector('#go')).transitionDuration") == "0s"
    assert seen.page.evaluate(moving) == 0


def test_both_languages_say_everything(opened: Open) -> None:
    seen = opened()
    tables: dict[str, Any] = seen.page.evaluate("import('/playground/texts.js').then((m) => m.tables)")
    texts = tables["TEXTS"]
    for name, pair in texts.items():
        assert len(pair) == 2, name
        assert all(pair), name
        assert sorted(re.findall(r"\{\w+\}", pair[0])) == sorted(re.findall(r"\{\w+\}", pair[1])), name
    source = "".join(path.read_text() for path in PLAYGROUND.glob("*.js") if path.name != "texts.js")
    said = set(re.findall(r"""["'`]([a-z]+(?:\.[a-z_]+)*)["'`]""", source)) & set(texts)
    built = set(re.findall(r"`([a-z.]+\.)\$\{", source))
    unused = {name for name in texts if name not in said and not any(name.startswith(p) for p in built)}
    inside = set(re.findall(r't\("([a-z.]+)"', (PLAYGROUND / "texts.js").read_text()))
    assert unused - inside == set()
    from lipsync_engine.errors import ErrorCode
    from server.jobs import state as job_state
    from server.jobs.admission import AdmissionCode
    from server.storage.transport import TransportCode

    kinds = (
        job_state.WORKER_LOST,
        job_state.STORAGE_UNAVAILABLE,
        job_state.WAIT_TIMEOUT,
        job_state.RUN_TIMEOUT,
    )
    own = {failure.code for failure in kinds}
    assert set(tables["FAILURES"]) == {
        *map(str, ErrorCode),
        *map(str, TransportCode),
        *map(str, AdmissionCode),
        *own,
    }
