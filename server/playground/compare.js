// Original and result: slid over each other or side by side, played together, with the sound's shape; download
// and the same as a program.

import * as api from "./api.js";
import { button, fill, h, icon, notice } from "./dom.js";
import { clock, t } from "./texts.js";
import { snippets } from "./snippets.js";
import { drawCurve, drawWave, peaksOf } from "./wave.js";

const DRIFT_S = 0.06;
/** A file larger than this is not decoded as a whole for its waveform. */
const WAVE_MOST_S = 900;

/** The place in a source that is repeated, back and forth or from the start: [seconds, runs forwards]. */
export function sourceTime(at_s, length_s, mode) {
  if (!(length_s > 0) || at_s < length_s) return [at_s, true];
  const turn = Math.floor(at_s / length_s);
  const within = at_s - turn * length_s;
  return mode === "loop" || turn % 2 === 0 ? [within, true] : [length_s - within, false];
}

/** @returns {{view: HTMLElement, leave: () => void}} */
export function compare(job, from_s = 0) {
  const shown = new Compare(job, from_s);
  return { view: shown.view, leave: () => shown.leave() };
}

class Compare {
  constructor(job, from_s) {
    this.job = job;
    this.mode = job.request.input.loop_mode ?? "pingpong";
    this.result = h("video", { src: api.here(job.output.url), preload: "auto", "aria-label": t("compare.result"), set: { playsInline: true } });
    this.original = this.originalOf(job.request.files);
    this.stage = h("div", { class: "stage" });
    this.view = h("div", { class: "compare" }, this.stage, this.transport(), this.below());
    this.result.addEventListener("loadedmetadata", () => this.known(from_s), { once: true });
    for (const event of ["play", "pause", "ended"]) this.result.addEventListener(event, () => this.showPlaying());
    for (const event of ["timeupdate", "seeked"]) this.result.addEventListener(event, () => this.moved());
    this.arrange(this.original.element ? "slider" : "alone");
  }

  leave() {
    cancelAnimationFrame(this.frame);
    this.result.pause();
    this.result.removeAttribute("src");
  }

  originalOf({ video, image }) {
    const link = video ?? image;
    if (!link || !api.isOurs(link)) return { element: null, why: t("compare.elsewhere") };
    const element = video
      ? h("video", { src: api.here(link), preload: "auto", "aria-label": t("compare.original"), set: { muted: true, playsInline: true } })
      : h("img", { src: api.here(link), alt: t("compare.original") });
    element.addEventListener("error", () => {
      this.original = { element: null, why: t("compare.nooriginal") };
      this.arrange("alone");
    });
    return { element, moves: Boolean(video) };
  }

  // --- arrangement ---

  arrange(how) {
    this.how = how;
    const { element, why } = this.original;
    this.stage.className = `stage ${how}`;
    if (!element) return fill(this.stage, this.result, h("p", { class: "quiet" }, why));
    const choice = h("div", { class: "segmented", role: "radiogroup", "aria-label": t("compare.how") }, ["slider", "beside"].map((name) => this.choice(name)));
    const figures = [figure(element, t("compare.original"), "before"), figure(this.result, t("compare.result"), "after")];
    const frame = h("div", { class: "frame" }, how === "slider" ? figures.reverse() : figures, how === "slider" && this.slider());
    fill(this.stage, choice, frame);
    return undefined;
  }

  choice(name) {
    const input = h("input", { type: "radio", name: "how", value: name, set: { checked: this.how === name } });
    input.addEventListener("change", () => {
      const playing = !this.result.paused;
      this.arrange(name);
      this.stage.querySelector(`input[value="${name}"]`).focus();
      if (playing) this.result.play(); // a video that was moved in the page stands still
    });
    return h("label", {}, input, h("span", {}, t(`compare.${name}`)));
  }

  slider() {
    const range = h("input", { type: "range", min: 0, max: 100, step: 0.5, class: "split", "aria-label": t("compare.split"), set: { value: this.split ?? 50 } });
    const show = () => {
      this.split = Number(range.value);
      this.stage.style.setProperty("--split", `${range.value}%`);
    };
    range.addEventListener("input", show);
    show();
    return [h("div", { class: "seam", "aria-hidden": "true" }), range];
  }

  // --- playing together ---

  transport() {
    this.play = button(t("compare.play"), () => (this.result.paused ? this.result.play() : this.result.pause()), { kind: "round", symbol: "play" });
    this.seek = h("input", { type: "range", min: 0, max: 1, step: 0.01, class: "seek", "aria-label": t("compare.seek"), set: { value: 0 } });
    this.seek.addEventListener("input", () => (this.result.currentTime = Number(this.seek.value)));
    this.clock = h("span", { class: "clock" }, "0:00 / 0:00");
    this.wave = h("canvas", { class: "wave-line", "aria-hidden": "true" });
    this.showWave();
    const { sync } = this.job.output;
    if (sync) this.fit = h("canvas", { class: "fit-line", "aria-hidden": "true" });
    const bar = h("div", { class: "transport" }, this.play, h("div", { class: "track" }, this.wave, this.seek, this.fit), this.clock);
    return [bar, sync && h("p", { class: "fit quiet" }, fitText(sync))];
  }

  known(from_s) {
    this.seek.max = this.result.duration;
    this.stage.style.setProperty("--aspect", this.result.videoWidth / this.result.videoHeight);
    if (from_s > 0 && from_s < this.result.duration) this.result.currentTime = from_s;
    this.moved();
  }

  showPlaying() {
    const playing = !this.result.paused && !this.result.ended;
    this.play.lastChild.textContent = t(playing ? "compare.pause" : "compare.play");
    this.play.replaceChild(icon(playing ? "pause" : "play"), this.play.firstChild);
    cancelAnimationFrame(this.frame);
    const step = () => {
      this.moved();
      this.frame = requestAnimationFrame(step);
    };
    if (playing) step();
    else this.moved();
  }

  /** Bring the original, the slider below and the waveform to where the result is. */
  moved() {
    const at_s = this.result.currentTime;
    this.seek.value = at_s;
    this.seek.setAttribute("aria-valuetext", clock(at_s));
    this.clock.textContent = `${clock(at_s)} / ${clock(this.result.duration || 0)}`;
    if (this.fit) drawCurve(this.fit, this.job.output.sync.curve, this.result.duration || 1);
    if (this.peaks) drawWave(this.wave, this.peaks, at_s / (this.result.duration || 1));
    const { element, moves } = this.original;
    if (!moves || element.readyState === 0) return;
    const [wanted_s, forwards] = sourceTime(at_s, element.duration, this.mode);
    const runs = forwards && !this.result.paused && !this.result.ended;
    if (runs && element.paused) element.play().catch(() => {});
    if (!runs && !element.paused) element.pause();
    if (Math.abs(element.currentTime - wanted_s) > (runs ? DRIFT_S : 0.02) && !element.seeking) element.currentTime = wanted_s;
  }

  async showWave() {
    if ((this.job.output.duration_s ?? 0) > WAVE_MOST_S) return this.wave.remove();
    try {
      this.peaks = await peaksOf(await (await fetch(api.here(this.job.output.url))).arrayBuffer());
      this.moved();
    } catch {
      this.wave.remove(); // a sound that this browser cannot decode; the film plays all the same
    }
    return undefined;
  }

  // --- taking it away ---

  below() {
    const name = `${(this.job.title || this.job.id).replace(/[^\p{L}\p{N} ._+-]/gu, "").trim() || this.job.id}.mp4`;
    const download = h("a", { class: "button primary", href: api.here(this.job.output.url), download: name }, icon("download"), h("span", {}, t("compare.download")));
    return h("div", { class: "below" }, h("div", { class: "row" }, download), code(this.job));
  }
}

function fitText({ confidence, offset_frames: late }) {
  const words = t(late === 0 ? "compare.fit" : late > 0 ? "compare.fit.late" : "compare.fit.early", { value: confidence.toFixed(1), time: Math.abs(late) * 40 });
  return `${words} ${t("compare.fit.why")}`;
}

function figure(element, words, kind) {
  return h("figure", { class: kind }, element, h("figcaption", {}, words));
}

function code(job) {
  const all = snippets(job, api.base());
  const shown = h("pre", { tabindex: 0 }, h("code", {}, all[0].text));
  let chosen = all[0];
  const tabs = all.map((one, k) => {
    const input = h("input", { type: "radio", name: "code", value: one.name, set: { checked: k === 0 } });
    input.addEventListener("change", () => ((chosen = one), (shown.firstChild.textContent = one.text)));
    return h("label", {}, input, h("span", {}, one.name));
  });
  const copy = button(t("compare.copy"), async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(chosen.text);
    else { // on plain http browsers let nothing but the old way through
      getSelection().selectAllChildren(shown);
      document.execCommand("copy");
    }
    notice(t("compare.copied"));
  }, { kind: "small", symbol: "copy" });
  return h("details", { class: "panel code" }, h("summary", {}, t("compare.code")), h("div", { class: "row" }, h("div", { class: "segmented", role: "radiogroup", "aria-label": t("compare.code") }, tabs), copy), shown);
}
