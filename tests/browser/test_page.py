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

from tests.support.browser_tab import OpenTab, Tab
from tests.support.live_server import LiveServer
from tests.support.paths import ROOT
from tests.support.polling import wait_until

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


PAUSES = """async () => {
    const { drawConfidence, drawWaveform } = await import('/playground/wave.js');
    const { createComparison } = await import('/playground/compare.js');
    const pauses_s = [[1, 2.5], [3, 3.5]];
    const sync = { confidence: 5, offset_frames: 0, curve: [] };
    const output = { url: '/none.mp4', duration_s: 1e6, sync, pauses_s };
    const job = { id: 'x', model: 'm', output, request: { path: '/x', input: {}, files: {}, body: {} } };
    const { view } = createComparison(job);
    document.body.append(view);
    const isShaded = (name, draw) => {
        const canvas = document.createElement('canvas');
        canvas.className = name;
        document.querySelector('.track').append(canvas);
        draw(canvas);
        const { data } = canvas.getContext('2d').getImageData(0, 1, canvas.width, 1);
        const at = (second) => data[4 * Math.floor((second / 4) * canvas.width) + 3] > 0;
        canvas.remove();
        return [0.5, 1.2, 2.2, 2.8, 3.2, 3.8].map(at);
    };
    const found = [
        isShaded('wave-line', (canvas) => drawWaveform(canvas, new Float32Array(600), 0, 4, pauses_s)),
        isShaded('fit-line', (canvas) => drawConfidence(canvas, [], 4, pauses_s)),
        view.querySelector('.pauses').textContent,
    ];
    view.remove();
    return found;
}"""
"""Where both curves shade two pauses of 4 s, and the sentence below them."""


@pytest.fixture(scope="session")
def long_voice(make_voice: Callable[[float], Path]) -> Path:
    return make_voice(LONG_S)


def fill_form(tab: Tab, video: Path, voice: Path, steps: int) -> None:
    for role, file in (("video", video), ("audio", voice)):
        if tab.page.query_selector(f"#file-{role}"):
            tab.page.set_input_files(f"#file-{role}", file)
    if not tab.page.is_visible("#option-inference_steps"):
        tab.page.click(".more summary")
    tab.page.fill("#option-inference_steps", str(steps))


def submit_form(tab: Tab, video: Path, voice: Path, steps: int) -> str:
    """Fill in the form, submit; the job's id."""
    fill_form(tab, video, voice, steps)
    tab.page.click("#go")
    tab.page.wait_for_selector(".job[data-job]")
    return str(tab.page.get_attribute(".job", "data-job"))


def preview_files(server: LiveServer) -> list[Path]:
    return [path for path in (server.data_dir / "blobs" / "previews").rglob("*") if path.is_file()]


def test_invalid_key_is_reported(open_tab: OpenTab) -> None:
    tab = open_tab(key="")
    tab.expected_messages.append("401")
    tab.page.fill("#key", "sk_nobody")
    tab.page.click("button[type=submit]")
    tab.page.wait_for_selector(".enter .problem:not(:empty)")
    assert "not valid" in tab.page.inner_text(".enter .problem")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_job_from_upload_to_deletion(
    server: LiveServer, open_tab: OpenTab, clip: Path, long_voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    tab = open_tab()
    page = tab.page
    server.wait_ready()

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
    tab.wait(
        "document.querySelector('[data-field=video] .problem').textContent.includes('not a readable video')"
    )
    page.click("[aria-label='Remove Video']")
    page.select_option("#model", "kwaivgi/kling-lipsync/audio-to-video")
    page.set_input_files("#file-video", clip)
    tab.wait("document.querySelector('[data-field=video] .problem').textContent.includes('320 × 320 pixels')")
    page.click("[aria-label='Remove Video']")
    page.select_option("#model", "wavespeed-ai/latentsync")
    fill_form(tab, clip, long_voice, 51)
    page.click("#go")
    assert "from 1 to 50" in page.inner_text(".more .problem:not(:empty)")

    # Watched while it is made.
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    began = time.monotonic()
    job = submit_form(tab, clip, long_voice, 2)
    stages = set()

    def plays() -> bool:
        stages.add(page.evaluate("document.querySelector('.steps .now')?.textContent ?? ''"))
        assert page.query_selector(".compare") is None, "it was done before anything could be watched"
        return bool(page.evaluate("(document.querySelector('.screen video')?.currentTime ?? 0) > 0.3"))

    wait_until(plays, "the first segment did not play", 120, 0.03)
    first_picture_s = time.monotonic() - began
    assert server.prediction(job)["status"] == "processing"
    buffered = "document.querySelector('.screen video').buffered"
    start_s, stop_s = page.evaluate(f"[{buffered}.start(0), {buffered}.end(0)]")
    assert (start_s, round(stop_s, 1)) == (0, 2.4)
    assert "2.4 s are ready to watch" in page.inner_text(".ready")
    assert {"Faces", "Lips"} <= stages
    tab.wait("document.querySelector('.watch progress').value > 60")
    tab.wait("document.querySelector('.compare')")
    whole_s = time.monotonic() - began
    print(f"{LONG_S} s of film: first picture after {first_picture_s:.1f} s, the end after {whole_s:.1f} s")
    assert len([url for url in requests if url.endswith("/events")]) == 1
    wait_until(lambda: not preview_files(server), "previews are left", 10)

    # Measured.
    tab.wait(r"/^Lip-sync confidence: \d+\.\d/.test(document.querySelector('.fit')?.textContent)")
    painted = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some((value) => value)"
    tab.wait(f"((c) => c.width > 0 && {painted})(document.querySelector('.fit-line'))")

    # Marked.
    page.wait_for_selector(".badge.trusted")
    assert page.inner_text(".badge") == "Signed as AI-generated"
    assert "development certificate" in page.inner_text(".credentials")
    assert "Model tiny" in page.inner_text(".credentials")

    # Compared.
    tab.wait("document.querySelector('.after video').readyState === 4")
    page.locator(".split").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.stage').style.getPropertyValue('--split')") == "55%"
    page.click(".segmented label:has(input[value=beside])")
    page.click(".transport .round")
    tab.wait("document.querySelector('.after video').currentTime > 1.3")
    page.click(".transport .round")
    tab.wait(f"{APART_S} < 0.1")
    tab.expected_messages.append("Canvas2D: Multiple readback")  # by this very look
    assert tab.wait(PAINTED)
    with page.expect_download() as download:
        page.click(".below a[download]")
    assert download.value.suggested_filename == f"clip + {long_voice.stem}.mp4"
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
    page.click(".code summary")
    for name, part in (
        ("Python", "wavespeed.Client("),
        ("JavaScript", "new Client("),
        ("curl", "curl -X POST"),
    ):
        page.click(f".code label:has(input[value={name}])")
        assert part in page.inner_text(".code pre")
        assert server.key not in page.inner_text(".code pre")

    # Found again, made again with changes, deleted.
    tab.go("#/jobs")
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
    assert page.input_value("#title") == f"clip + {long_voice.stem}"
    assert page.locator(".slot video").count() == 1
    tab.go("#/jobs")
    page.wait_for_selector(row)
    for _ in range(2):
        page.click(f"{row} button")
    wait_until(lambda: page.query_selector(row) is None, "it is still listed", 20, 0.05)
    assert server.request("GET", f"/api/v3/predictions/{job}/result")[0] == 404


def test_cancelled_job_leaves_no_previews(
    server: LiveServer, open_tab: OpenTab, clip: Path, voice: Path
) -> None:
    tab = open_tab()
    server.wait_ready()
    job = submit_form(tab, clip, voice, 50)
    tab.page.wait_for_selector(".watch .button")
    tab.wait("document.querySelector('.steps .now')?.textContent === 'Lips'")
    tab.page.click(".watch .button")
    tab.page.wait_for_selector(".pill.cancelled")
    assert server.prediction(job)["status"] == "cancelled"
    wait_until(lambda: not preview_files(server), "previews are left", 10)


@pytest.mark.slow
def test_page_recovers_from_a_server_restart(
    server: LiveServer, open_tab: OpenTab, clip: Path, long_voice: Path
) -> None:
    """Nobody touches the page: it says what is wrong, comes back by itself, and plays on."""
    tab = open_tab()
    tab.expected_messages += [
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_EMPTY_RESPONSE",
        "ERR_CONNECTION_RESET",
    ]
    server.wait_ready()
    job = submit_form(tab, clip, long_voice, 2)
    tab.wait("document.querySelector('.screen video')?.buffered.length > 0")
    server.stop(signal.SIGKILL)
    tab.page.wait_for_selector(".job .banner:not([hidden])")
    server.start_again()
    tab.wait("document.querySelector('.job > .banner').hidden")
    tab.page.wait_for_selector(".watch .banner:not([hidden])")
    assert "earlier attempt was interrupted" in tab.page.inner_text(".watch .banner")
    tab.page.wait_for_selector(".compare", timeout=120000)
    assert server.prediction(job)["status"] == "completed"


@pytest.mark.slow
def test_page_polls_where_event_streams_fail(
    server: LiveServer, open_tab: OpenTab, clip: Path, voice: Path
) -> None:
    """As behind a proxy that lets no stream through; the voice is recorded here."""
    tab = open_tab()
    tab.expected_messages.append("ERR_FAILED")
    tab.page.route("**/events", lambda route: route.abort())
    server.wait_ready()
    tab.page.click("[data-field=audio] .pick > button")
    tab.page.wait_for_selector(".recorder")
    tab.wait("document.querySelector('.recording').textContent.includes('1 s')")
    tab.page.click(".recorder .primary")
    tab.page.wait_for_selector("[data-field=audio] audio")
    assert "recording.webm" in tab.page.inner_text("[data-field=audio] .named")
    tab.page.set_input_files("#file-video", clip)
    tab.page.click(".more summary")
    tab.page.fill("#option-inference_steps", "1")
    tab.page.click("#go")
    tab.page.wait_for_selector(".compare", timeout=120000)


def test_failed_job_is_explained_and_its_form_restored(
    server: LiveServer, open_tab: OpenTab, clip: Path, voice: Path, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """Two speakers are requests for where there is one: it says so, and the form comes back as it was."""
    portrait = tmp_path / "portrait.png"
    ffmpeg("-i", clip, "-frames:v", 1, portrait)
    tab = open_tab()
    page = tab.page
    server.wait_ready()
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
    page.click("text=Edit and run again")
    page.wait_for_selector("#go")
    assert page.is_checked("input[value=several]")
    assert page.input_value("#option-order") == "left_right"
    assert page.locator(".slot .shown").count() == 3


def test_two_speakers_of_a_video_become_segments(open_tab: OpenTab, clip: Path, voice: Path) -> None:
    """Each voice becomes a segment with a face; with one face there it fails, and comes back as it was."""
    tab = open_tab()
    page = tab.page
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
    page.click("text=Edit and run again")
    page.wait_for_selector("#go")
    assert page.is_checked("input[value=several]")
    assert page.locator(".media .slot .shown").count() == 3


def test_comparison_shades_and_lists_pauses(open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.expected_messages += ["Canvas2D: Multiple readback", "404"]
    waveform, confidence, text = tab.page.evaluate(PAUSES)
    assert waveform == confidence == [False, True, True, False, True, False]
    assert text == "Voice gate closed for 2.0 s, shaded above. The lips rest at: 1.0–2.5, 3.0–3.5 s."


def test_key_is_created_and_revoked(server: LiveServer, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    tab.go("#/keys")
    page.wait_for_selector(".key-form")
    page.fill("#key-name", "render farm")
    page.click(".key-form button")
    page.wait_for_selector(".secret")
    key = page.inner_text(".secret")
    assert key.startswith("sk_")
    headers = {"Authorization": f"Bearer {key}"}
    status, me = server.request("GET", "/api/native/v1/me", **headers)
    assert (status, me["name"], me["scopes"]) == (200, "render farm", ["read", "run"])
    row = f"[data-key='{me['key_id']}']"
    page.click("text=I have copied it")
    assert key not in page.content()
    for _ in range(2):
        page.click(f"{row} button")
    page.wait_for_selector(f"{row}.ended")
    assert "Revoked" in page.inner_text(row)
    assert server.request("GET", "/api/native/v1/me", **headers)[0] == 401


def test_read_only_key_sees_its_own_tenant(server: LiveServer, open_tab: OpenTab) -> None:
    _, created = server.request("POST", "/admin/keys?tenant=guests&scopes=read")
    tab = open_tab(key=created["key"])
    assert tab.page.is_disabled("#go")
    tab.go("#/keys")
    tab.page.wait_for_selector(".empty")
    assert "guests" in tab.page.inner_text(".empty")
    tab.go("#/jobs")
    tab.page.wait_for_selector(".jobs")
    assert tab.page.query_selector("#filter-tenants") is None


# --- for everybody ---


@pytest.fixture(scope="module")
def finished(server: LiveServer, clip: Path, voice: Path) -> str:
    server.wait_ready()
    job = server.submit(server.upload(clip), server.upload(voice), inference_steps=1, prompt="Smile.")
    failed = server.submit(server.upload(voice), server.upload(voice))
    for one in (job, failed):
        server.wait_for_job(one)
    return job


def views(job: str) -> dict[str, str]:
    """Where each view is, and what shows that it is there."""
    return {"#/create": "#go", f"#/jobs/{job}": ".wave-line", "#/jobs": ".rows li", "#/keys": ".rows li",
            "#/health": ".tile"}  # fmt: skip


def test_ignored_options_are_reported(open_tab: OpenTab, finished: str) -> None:
    tab = open_tab()
    tab.go(f"#/jobs/{finished}")
    tab.page.wait_for_selector(".banner:not([hidden])")
    assert "prompt" in tab.page.inner_text(".banner:not([hidden])")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_reports_no_serious_violation(dark: bool, open_tab: OpenTab, finished: str, axe: str) -> None:
    tab = open_tab(dark=dark, language="en")
    page = tab.page
    page.evaluate(axe)
    matches: list[str] = []

    def examine(view: str) -> None:
        result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        for violation in result["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = json.dumps([node["html"][:150] for node in violation["nodes"][:3]])
                matches.append(f"{view}: {violation['id']} {nodes}")

    for view, sign in views(finished).items():
        tab.go(view)
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
    assert matches == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_fits_a_phone(language: str, open_tab: OpenTab, finished: str) -> None:
    tab = open_tab(width=390, height=844, language=language)
    for view, sign in views(finished).items():
        tab.go(view)
        tab.page.wait_for_selector(sign)
        for closed in tab.page.query_selector_all("main details summary"):
            closed.click()
        wide = tab.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, view
    assert tab.page.get_attribute("html", "lang") == {"en": "en", "zh": "zh-Hans"}[language]


def test_form_is_reachable_by_keyboard(open_tab: OpenTab) -> None:
    """From the top of the page to the form's button, and every stop can be tab."""
    tab = open_tab()
    stops = []
    tab.page.evaluate("document.querySelector('.skip').focus()")
    assert tab.page.evaluate("document.querySelector('.skip').getBoundingClientRect().top") >= 0
    for _ in range(25):
        tab.page.keyboard.press("Tab")
        stops.append(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if stops[-1] == "go":
            break
    assert stops[1] == "Create"
    assert {"file-video", "file-audio", "model", "go"} <= set(stops), stops


def test_reduced_motion_is_respected(open_tab: OpenTab) -> None:
    tab = open_tab()
    moving = "document.getAnimations().length"
    tab.page.click("#go")
    assert tab.page.evaluate("getComputedStyle(document.querySelector('#go')).transitionDuration") == "0s"
    assert tab.page.evaluate(moving) == 0


def test_both_languages_have_every_text(open_tab: OpenTab) -> None:
    tab = open_tab()
    tables: dict[str, Any] = tab.page.evaluate("import('/playground/texts.js').then((m) => m.tables)")
    texts = tables["TEXTS"]
    for name, pair in texts.items():
        assert len(pair) == 2, name
        assert all(pair), name
        assert sorted(re.findall(r"\{\w+\}", pair[0])) == sorted(re.findall(r"\{\w+\}", pair[1])), name
    source = "".join(path.read_text() for path in PLAYGROUND.glob("*.js") if path.name != "texts.js")
    names_in_source = set(re.findall(r"""["'`]([a-z]+(?:\.[a-z_]+)*)["'`]""", source)) & set(texts)
    built = set(re.findall(r"`([a-z.]+\.)\$\{", source))
    unused = {
        name for name in texts if name not in names_in_source and not any(name.startswith(p) for p in built)
    }
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
