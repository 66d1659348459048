// Comparison of original and result: slider or side by side, played in sync, with the waveform; download and
// code for the API.

import * as api from "./api.js";
import { button, h, icon, replaceChildren, showNotice } from "./dom.js";
import { formatPosition, joinSentences, t } from "./texts.js";
import { buildSnippets } from "./snippets.js";
import { computePeaks, drawConfidence, drawWaveform } from "./wave.js";

const MAX_DRIFT_PLAYING_S = 0.06;
const MAX_DRIFT_PAUSED_S = 0.02;
const MAX_LISTED_PAUSES = 5;
const FRAME_MS = 40; // of the lip-sync score, which counts at 25 fps

/** Longer results get no waveform: it needs the whole file in memory. */
const MAX_WAVEFORM_S = 900;

/** Map a time of the result to the looped source, back and forth or from the start: [seconds, plays forwards]. */
export function sourceTime(at_s, length_s, mode) {
  if (!(length_s > 0) || at_s < length_s) return [at_s, true];
  const round = Math.floor(at_s / length_s);
  const rest_s = at_s - round * length_s;
  return mode === "loop" || round % 2 === 0 ? [rest_s, true] : [length_s - rest_s, false];
}

/** @returns {{view: HTMLElement, close: () => void}} */
export function createComparison(job, from_s = 0) {
  const comparison = new Comparison(job, from_s);
  return { view: comparison.view, close: () => comparison.close() };
}

class Comparison {
  constructor(job, from_s) {
    this.job = job;
    this.mode = job.request.input.loop_mode ?? "pingpong";
    this.result = h("video", { src: api.toPageUrl(job.output.url), preload: "auto", "aria-label": t("compare.result"), set: { playsInline: true } });
    this.original = this.createOriginal(job.request.files);
    this.stage = h("div", { class: "stage" });
    this.view = h("div", { class: "compare" }, this.stage, this.createTransport(), this.createFooter());
    this.result.addEventListener("loadedmetadata", () => this.onMetadata(from_s), { once: true });
    for (const event of ["play", "pause", "ended"]) this.result.addEventListener(event, () => this.updatePlayButton());
    for (const event of ["timeupdate", "seeked"]) this.result.addEventListener(event, () => this.syncToResult());
    this.showLayout(this.original.element ? "slider" : "alone");
  }

  close() {
    cancelAnimationFrame(this.frame);
    this.result.pause();
    this.result.removeAttribute("src");
  }

  createOriginal({ video, image }) {
    const link = video ?? image;
    if (!link || !api.isServerFile(link)) return { element: null, reason: t("compare.elsewhere") };
    const element = video
      ? h("video", { src: api.toPageUrl(link), preload: "auto", "aria-label": t("compare.original"), set: { muted: true, playsInline: true } })
      : h("img", { src: api.toPageUrl(link), alt: t("compare.original") });
    element.addEventListener("error", () => {
      this.original = { element: null, reason: t("compare.nooriginal") };
      this.showLayout("alone");
    });
    return { element, isVideo: Boolean(video) };
  }

  // --- layout ---

  showLayout(layout) {
    this.layout = layout;
    const { element, reason } = this.original;
    this.stage.className = `stage ${layout}`;
    if (!element) return replaceChildren(this.stage, this.result, h("p", { class: "quiet" }, reason));
    const choice = h("div", { class: "segmented", role: "radiogroup", "aria-label": t("compare.how") }, ["slider", "beside"].map((name) => this.createLayoutChoice(name)));
    const figures = [createFigure(element, t("compare.original"), "before"), createFigure(this.result, t("compare.result"), "after")];
    const frame = h("div", { class: "frame" }, layout === "slider" ? figures.reverse() : figures, layout === "slider" && this.createSlider());
    replaceChildren(this.stage, choice, frame);
    return undefined;
  }

  createLayoutChoice(name) {
    const input = h("input", { type: "radio", name: "layout", value: name, set: { checked: this.layout === name } });
    input.addEventListener("change", () => {
      const wasPlaying = !this.result.paused;
      this.showLayout(name);
      this.stage.querySelector(`input[value="${name}"]`).focus();
      if (wasPlaying) this.result.play(); // moving a video in the page pauses it
    });
    return h("label", {}, input, h("span", {}, t(`compare.${name}`)));
  }

  createSlider() {
    const range = h("input", { type: "range", min: 0, max: 100, step: 0.5, class: "split", "aria-label": t("compare.split"), set: { value: this.split ?? 50 } });
    const update = () => {
      this.split = Number(range.value);
      this.stage.style.setProperty("--split", `${range.value}%`);
    };
    range.addEventListener("input", update);
    update();
    return [h("div", { class: "seam", "aria-hidden": "true" }), range];
  }

  // --- playback ---

  createTransport() {
    this.play = button(t("compare.play"), () => (this.result.paused ? this.result.play() : this.result.pause()), { kind: "round", symbol: "play" });
    this.seek = h("input", { type: "range", min: 0, max: 1, step: 0.01, class: "seek", "aria-label": t("compare.seek"), set: { value: 0 } });
    this.seek.addEventListener("input", () => (this.result.currentTime = Number(this.seek.value)));
    this.position = h("span", { class: "clock" }, "0:00 / 0:00");
    this.waveform = h("canvas", { class: "wave-line", "aria-hidden": "true" });
    this.loadWaveform();
    const { sync, pauses_s } = this.job.output;
    if (sync) this.confidenceCurve = h("canvas", { class: "fit-line", "aria-hidden": "true" });
    const bar = h("div", { class: "transport" }, this.play, h("div", { class: "track" }, this.waveform, this.seek, this.confidenceCurve), this.position);
    return [bar, sync && h("p", { class: "fit quiet" }, confidenceText(sync)), pauses_s.length > 0 && h("p", { class: "pauses quiet" }, pausesText(pauses_s))];
  }

  onMetadata(from_s) {
    this.seek.max = this.result.duration;
    this.stage.style.setProperty("--aspect", this.result.videoWidth / this.result.videoHeight);
    if (from_s > 0 && from_s < this.result.duration) this.result.currentTime = from_s;
    this.syncToResult();
  }

  updatePlayButton() {
    const playing = !this.result.paused && !this.result.ended;
    this.play.lastChild.textContent = t(playing ? "compare.pause" : "compare.play");
    this.play.replaceChild(icon(playing ? "pause" : "play"), this.play.firstChild);
    cancelAnimationFrame(this.frame);
    const step = () => {
      this.syncToResult();
      this.frame = requestAnimationFrame(step);
    };
    if (playing) step();
    else this.syncToResult();
  }

  /** Update original, position and curves to the current time of the result. */
  syncToResult() {
    const at_s = this.result.currentTime;
    this.seek.value = at_s;
    this.seek.setAttribute("aria-valuetext", formatPosition(at_s));
    this.position.textContent = `${formatPosition(at_s)} / ${formatPosition(this.result.duration || 0)}`;
    const { sync, pauses_s } = this.job.output;
    if (this.confidenceCurve) drawConfidence(this.confidenceCurve, sync.curve, this.result.duration || 1, pauses_s);
    if (this.peaks) drawWaveform(this.waveform, this.peaks, at_s, this.result.duration || 1, pauses_s);
    const { element, isVideo } = this.original;
    if (!isVideo || element.readyState === 0) return;
    const [target_s, isForwards] = sourceTime(at_s, element.duration, this.mode);
    const shouldPlay = isForwards && !this.result.paused && !this.result.ended;
    if (shouldPlay && element.paused) element.play().catch(() => {});
    if (!shouldPlay && !element.paused) element.pause();
    if (Math.abs(element.currentTime - target_s) > (shouldPlay ? MAX_DRIFT_PLAYING_S : MAX_DRIFT_PAUSED_S) && !element.seeking) element.currentTime = target_s;
  }

  async loadWaveform() {
    if ((this.job.output.duration_s ?? 0) > MAX_WAVEFORM_S) return this.waveform.remove();
    try {
      this.peaks = await computePeaks(await (await fetch(api.toPageUrl(this.job.output.url))).arrayBuffer());
      this.syncToResult();
    } catch {
      this.waveform.remove(); // the browser cannot decode the audio; the video plays nevertheless
    }
    return undefined;
  }

  // --- download and code ---

  createFooter() {
    const name = `${(this.job.title || this.job.id).replace(/[^\p{L}\p{N} ._+-]/gu, "").trim() || this.job.id}.mp4`;
    const download = h("a", { class: "button primary", href: api.toPageUrl(this.job.output.url), download: name }, icon("download"), h("span", {}, t("compare.download")));
    return h("div", { class: "below" }, h("div", { class: "row" }, download), createSnippets(this.job));
  }
}

function confidenceText({ confidence, offset_frames: delay }) {
  const text = t(delay === 0 ? "compare.fit" : delay > 0 ? "compare.fit.late" : "compare.fit.early", { value: confidence.toFixed(1), time: Math.abs(delay) * FRAME_MS });
  return joinSentences([text, t("compare.fit.why")]);
}

/** Describe how long the lips rest, and list the first pauses. */
function pausesText(pauses_s) {
  const total_s = pauses_s.reduce((sum, [start_s, stop_s]) => sum + stop_s - start_s, 0);
  const times = pauses_s.slice(0, MAX_LISTED_PAUSES).map(([start_s, stop_s]) => `${start_s.toFixed(1)}–${stop_s.toFixed(1)}`);
  if (pauses_s.length > times.length) times.push("…");
  return t("compare.pauses", { seconds: total_s.toFixed(1), times: times.join(", ") });
}

function createFigure(element, caption, kind) {
  return h("figure", { class: kind }, element, h("figcaption", {}, caption));
}

function createSnippets(job) {
  const snippets = buildSnippets(job, api.baseUrl());
  const code = h("pre", { tabindex: 0 }, h("code", {}, snippets[0].text));
  let selected = snippets[0];
  const tabs = snippets.map((snippet, k) => {
    const input = h("input", { type: "radio", name: "code", value: snippet.name, set: { checked: k === 0 } });
    input.addEventListener("change", () => ((selected = snippet), (code.firstChild.textContent = snippet.text)));
    return h("label", {}, input, h("span", {}, snippet.name));
  });
  const copy = button(t("compare.copy"), async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(selected.text);
    else { // browsers offer no clipboard on plain http
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    showNotice(t("compare.copied"));
  }, { kind: "small", symbol: "copy" });
  return h("details", { class: "panel code" }, h("summary", {}, t("compare.code")), h("div", { class: "row" }, h("div", { class: "segmented", role: "radiogroup", "aria-label": t("compare.code") }, tabs), copy), code);
}
