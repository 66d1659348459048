// The form: a kind, its media, its options; checks before anything is sent; upload and submission.

import * as api from "./api.js";
import { kindOf, look, refusal } from "./checks.js";
import { button, fill, h, icon, notice } from "./dom.js";
import { entries } from "./entries.js";
import { canRecord, record } from "./record.js";
import { bytes, duration, errorText, has, t } from "./texts.js";
import { drawWave, peaksOf } from "./wave.js";

const KINDS = [
  ["video", "film"],
  ["image", "face"],
  ["several", "two"],
];
const WAVE_MOST_BYTES = 40e6;
const SYMBOLS = { video: "film", image: "face", audio: "voice" };

/**
 * @param {object|null} earlier a job whose inputs and options are to be taken over
 * @returns {Promise<{title: string, view: HTMLElement, leave: () => void}>}
 */
export async function create(earlier) {
  const all = await entries();
  const inSegments = Boolean(earlier?.request.input.segments);
  const first = all.find((entry) => entry.path === earlier?.request.path && (entry.kind === "several") === (inSegments || "left_audio" in earlier.request.files)) ?? all[0];
  const form = new Form(all, first, earlier);
  return { title: t("nav.create"), view: form.view, leave: () => form.leave() };
}

class Form {
  constructor(all, first, earlier) {
    this.all = all;
    this.earlier = earlier;
    this.slots = new Map();
    this.values = { ...(earlier?.request.input ?? {}) };
    this.upload = null;
    this.token = api.token();
    this.kinds = h("div", { class: "kinds", role: "radiogroup", "aria-label": t("create.kind") });
    this.media = h("div", { class: "media" });
    this.extras = h("details", { class: "panel more", set: { open: Boolean(earlier) } });
    this.panel = h("section", { class: "panel summary" });
    this.status = h("p", { class: "status", role: "status" });
    this.view = h(
      "div",
      { class: "create" },
      h("header", { class: "head" }, h("h1", {}, t("create.title")), h("p", { class: "lead" }, t(earlier ? "create.again" : "create.words"))),
      this.kinds,
      h("div", { class: "create-grid" }, h("div", { class: "create-left" }, this.media, this.extras), this.panel),
    );
    this.choose(first);
  }

  leave() {
    this.upload?.abort();
    for (const slot of this.slots.values()) slot.clear();
  }

  choose(entry) {
    this.entry = entry;
    fill(this.kinds, KINDS.filter(([kind]) => this.all.some((one) => one.kind === kind)).map(([kind, symbol]) => this.kindChoice(kind, symbol)));
    const before = this.slots;
    this.slots = new Map(entry.media.map(({ name, limits, optional }) => [name, before.get(name) ?? this.slot(name, limits, optional)]));
    for (const [name, slot] of before) if (!this.slots.has(name)) slot.clear();
    for (const { name, limits } of entry.media) this.slots.get(name).limit(limits);
    const wanted = [...this.slots.values()].filter((slot) => !slot.optional);
    fill(this.media, wanted.map((slot) => slot.view));
    this.media.dataset.count = wanted.length;
    this.showOptions();
    if (!this.upload) this.say("");
  }

  kindChoice(kind, symbol) {
    const input = h("input", { type: "radio", name: "kind", value: kind, set: { checked: kind === this.entry.kind } });
    input.addEventListener("change", () => {
      this.choose(this.all.find((entry) => entry.kind === kind));
      this.kinds.querySelector(`input[value="${kind}"]`).focus();
    });
    const words = h("span", { class: "kind-words" }, h("strong", {}, t(`kind.${kind}`)), h("small", {}, t(`kind.${kind}.words`)));
    return h("label", { class: "kind" }, input, icon(symbol), words);
  }

  slot(name, limits, optional) {
    const link = this.earlier && this.entry.files(this.earlier.request.files)[name];
    return new Slot(name, limits, optional, link ?? null, () => this.say(""));
  }

  showOptions() {
    const same = this.all.filter((entry) => entry.kind === this.entry.kind);
    const model = h("select", { id: "model", name: "model" }, same.map((entry) => h("option", { value: entry.id, set: { selected: entry === this.entry } }, labelOf(entry))));
    model.addEventListener("change", () => {
      this.choose(this.all.find((entry) => entry.id === model.value));
      this.panel.querySelector("#model").focus();
    });
    this.name = h("input", { id: "title", maxlength: 200, autocomplete: "off", placeholder: t("create.title.hint"), set: { value: this.values.title ?? "" } });
    this.options = this.entry.options.map(({ name, rule }) => new Option(name, rule, this.values[name]));
    this.go = button(t("create.go"), () => this.submit(), { kind: "primary big", symbol: "arrow", id: "go" });
    const may = api.session.can("run");
    this.go.disabled = !may;
    this.extras.hidden = this.options.length === 0;
    const further = [...this.slots.values()].filter((slot) => slot.optional).map((slot) => slot.view);
    fill(this.extras, h("summary", {}, t("create.options")), h("div", { class: "fields" }, this.options.map((option) => option.view)), further);
    fill(
      this.panel,
      h("div", { class: "field" }, h("label", { for: "title" }, t("create.title.label")), this.name),
      h("div", { class: "field" }, h("label", { for: "model" }, t("create.model")), model, h("small", {}, doneBy(api.session.me.model))),
      this.go,
      this.status,
      h("p", { class: "quiet" }, may ? t("create.consent") : t("create.norun")),
    );
  }

  /** Whether all is there and fits; what is not is marked. */
  fits() {
    const media = [...this.slots.values()].map((slot) => slot.check());
    const options = this.options.map((option) => option.check());
    return [...media, ...options].every(Boolean);
  }

  /** Bring what is marked first into view. */
  showWrong() {
    const wrong = this.view.querySelector(".slot.wrong, .invalid");
    wrong.scrollIntoView({ block: "center" });
    const entry = wrong.matches(".slot") ? wrong.querySelector("input, button") : wrong;
    entry.focus({ preventScroll: true });
  }

  async submit() {
    if (this.upload) return;
    this.say("");
    if (!this.fits()) {
      this.say(t("create.check"), "bad");
      this.showWrong();
      return;
    }
    this.upload = new AbortController();
    this.go.disabled = true;
    try {
      const given = {};
      for (const [name, slot] of this.slots) if (slot.file || slot.link) given[name] = await this.send(name, slot);
      for (const option of this.options) if (option.value !== null) given[option.name] = option.value;
      given.title = this.name.value.trim() || this.names();
      const id = await api.submit(this.entry.path, this.entry.body(given), this.token);
      location.hash = `#/jobs/${id}`;
    } catch (error) {
      this.say(error.name === "AbortError" ? "" : errorText(error), "bad");
    } finally {
      this.upload = null;
      this.go.disabled = false;
    }
  }

  names() {
    return [...this.slots.values()].map((slot) => slot.name.replace(/\.[^.]+$/, "")).filter(Boolean).join(" + ").slice(0, 200);
  }

  async send(name, slot) {
    if (slot.link) return slot.link;
    const bar = h("progress", { max: slot.file.size, value: 0, "aria-label": t("watch.bar") });
    const words = h("span", {}, "");
    fill(this.status, words, bar, button(t("create.stop"), () => this.upload?.abort(), { kind: "small" }));
    this.status.className = "status";
    const what = t(`media.${name}`).toLowerCase();
    const show = (sent) => {
      bar.value = sent;
      words.textContent = t("create.uploading", { what, percent: Math.round((100 * sent) / slot.file.size) });
    };
    show(0);
    slot.link = await api.upload(slot.file, show, this.upload.signal);
    fill(this.status);
    return slot.link;
  }

  say(words, kind = "") {
    this.status.className = `status ${kind}`;
    fill(this.status, words && kind === "bad" && icon("alert"), words);
  }
}

/** A model's name; where kinds of pictures are mixed, after what it takes. */
const labelOf = ({ id, kind, media }) => (kind === "several" ? `${t(`media.${media[0].name}`)} · ${id}` : id);

/** Whose work every model is, and for whom. */
const doneBy = (model) => [t("create.doneby", { model }), has(`about.model.${model}`) && t(`about.model.${model}`)].filter(Boolean).join(" ");

/** One place for a file: drop, choose, record; preview; why it is refused. */
class Slot {
  constructor(field, limits, optional, link, changed) {
    this.field = field;
    this.optional = optional;
    this.changed = changed;
    this.kind = kindOf(field);
    this.file = null;
    this.link = link;
    this.kept = Boolean(link);
    this.view = h("section", { class: "slot", "data-field": field, "aria-label": t(`media.${field}`) });
    this.limits = limits;
    this.recording = null;
    for (const name of ["dragover", "dragleave", "drop"]) this.view.addEventListener(name, (event) => this.drag(event));
  }

  get name() {
    return this.file?.name ?? "";
  }

  limit(limits) {
    this.limits = limits;
    this.problem = this.file ? this.refused() : null;
    this.show();
  }

  clear() {
    this.recording?.discard();
    this.recording = null;
    if (this.url) URL.revokeObjectURL(this.url);
    Object.assign(this, { file: null, link: null, kept: false, url: null, seen: null, problem: null });
  }

  check() {
    if (!this.optional && !this.file && !this.link) this.problem = ["refuse.missing", {}];
    this.show();
    return !this.problem;
  }

  refused() {
    return refusal(this.kind, this.seen, this.limits, api.session.me.limits.max_upload_bytes);
  }

  drag(event) {
    event.preventDefault();
    this.view.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop" && event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
  }

  async take(file, known = {}) {
    this.clear();
    this.file = file;
    this.url = URL.createObjectURL(file);
    this.seen = { ...(await look(file)), ...known };
    if (this.file !== file) return;
    this.problem = this.refused();
    this.show();
    this.changed();
  }

  /** What the browser says of length and pixels; it may know neither. */
  measured(more) {
    if (!this.seen) return;
    this.seen = { ...this.seen, ...more };
    this.problem = this.refused();
    this.facts.textContent = this.said();
    this.showProblem();
  }

  /** The browser knows no such pictures; the server may. */
  unseen() {
    this.measured({ isUnseen: true });
  }

  said() {
    if (!this.seen) return t("media.kept");
    const { size, duration_s, width, height, isUnseen } = this.seen;
    const unseen = isUnseen && !this.problem && t("media.unseen");
    return [bytes(size), Number.isFinite(duration_s) && duration(duration_s), width && `${width} × ${height}`, unseen].filter(Boolean).join(" · ");
  }

  show() {
    this.facts = h("span", { class: "facts" }, this.file || this.link ? this.said() : this.wanted());
    this.message = h("p", { class: "problem", role: "alert" });
    const head = h("header", {}, icon(SYMBOLS[this.kind]), h("h2", {}, t(`media.${this.field}`)));
    if (this.recording) fill(this.view, head, this.recorder(), this.message);
    else if (this.file || this.link) fill(this.view, head, this.preview(), this.named(), this.message);
    else fill(this.view, head, this.picker(), this.message);
    this.showProblem();
  }

  showProblem() {
    this.view.classList.toggle("wrong", Boolean(this.problem));
    const [name, values] = this.problem ?? [];
    const words = name && t(name, { ...values, what: values.what && t(`media.${values.what}`).toLowerCase(), size: values.size && bytes(values.size), most: values.most && bytes(values.most) });
    fill(this.message, words && icon("alert"), words);
  }

  wanted() {
    const { formats, max_bytes, min_s = 0, max_s, min_side_px = 0, max_side_px } = this.limits;
    const size = bytes(Math.min(max_bytes ?? Infinity, api.session.me.limits.max_upload_bytes));
    const parts = [formats ? t("media.upto", { formats: formats.join(", "), size }) : t("media.anything", { size })];
    if (max_s) parts.push(t("media.lasting", { low: min_s, high: max_s }));
    if (max_side_px) parts.push(t("media.sides", { low: min_side_px, high: max_side_px }));
    return parts.join(" · ");
  }

  picker() {
    const input = h("input", { type: "file", accept: `${this.kind}/*`, id: `file-${this.field}`, class: "file", "aria-label": t(`media.${this.field}`) });
    input.addEventListener("change", () => input.files[0] && this.take(input.files[0]));
    const where = h("label", { class: "drop", for: input.id }, icon("upload"), h("span", {}, t("media.drop")), this.facts);
    const kind = this.kind === "image" ? null : this.kind;
    const recorder = kind && canRecord(kind) && button(t("media.record"), () => this.record(), { kind: "small", symbol: kind === "audio" ? "mic" : "camera" });
    return h("div", { class: "pick" }, input, where, recorder);
  }

  preview() {
    if (!this.url && !api.isOurs(this.link)) return h("p", { class: "elsewhere" }, this.link);
    const url = this.url ?? api.here(this.link);
    if (this.kind === "image") {
      const image = h("img", { alt: "", src: url });
      image.addEventListener("load", () => this.measured({ width: image.naturalWidth, height: image.naturalHeight }));
      return h("div", { class: "shown" }, image);
    }
    const player = h(this.kind, { src: url, controls: true, preload: this.url ? "auto" : "metadata", "aria-label": t(`media.${this.field}`), set: { playsInline: true, muted: this.kind === "video" } });
    player.addEventListener("loadedmetadata", () => {
      if (this.kind === "video" && !player.videoWidth) this.unseen();
      const size = player.videoWidth ? { width: player.videoWidth, height: player.videoHeight } : {};
      this.measured(Number.isFinite(player.duration) ? { duration_s: player.duration, ...size } : size);
    });
    player.addEventListener("error", () => player.isConnected && this.unseen());
    return h("div", { class: `shown ${this.kind}` }, this.kind === "audio" && this.wave(), player);
  }

  /** The sound's shape; none where the browser cannot decode it, or it is long. */
  wave() {
    const canvas = h("canvas", { "aria-hidden": "true" });
    if (!this.file || this.file.size > WAVE_MOST_BYTES) return null;
    const drawn = this.file.arrayBuffer().then(peaksOf);
    drawn.then((peaks) => canvas.isConnected && drawWave(canvas, peaks, 1), () => canvas.remove());
    return canvas;
  }

  named() {
    const remove = button("", () => (this.clear(), this.show()), { kind: "icon-only", symbol: "close", "aria-label": t("media.remove", { what: t(`media.${this.field}`) }) });
    return h("div", { class: "named" }, h("div", {}, this.file && h("strong", {}, this.file.name), this.facts), remove);
  }

  async record() {
    try {
      this.recording = await record(this.kind);
    } catch (error) {
      return notice(t("media.norecord", { why: error.message }), "bad");
    }
    this.problem = null;
    this.show();
    this.view.querySelector("button").focus();
  }

  recorder() {
    const { stream } = this.recording;
    const began = performance.now();
    const words = h("p", { class: "recording" }, t("media.recording", { seconds: 0 }));
    const tick = setInterval(() => {
      if (!words.isConnected) return clearInterval(tick);
      words.textContent = t("media.recording", { seconds: Math.floor((performance.now() - began) / 1000) });
    }, 500);
    const live = this.kind === "video" && h("video", { class: "live", "aria-hidden": "true", set: { srcObject: stream, muted: true, autoplay: true, playsInline: true } });
    const stop = async () => {
      const { file, duration_s } = await this.recording.stop();
      this.recording = null;
      await this.take(file, { duration_s });
    };
    const discard = () => (this.clear(), this.show());
    return h("div", { class: "pick recorder" }, live, words, h("div", { class: "row" }, button(t("media.stop"), stop, { kind: "primary", symbol: "check" }), button(t("media.discard"), discard, { kind: "quiet-button" })));
  }
}

/** Left empty, these say nothing; others take what suits. */
const FREE = new Set(["consent", "prompt"]);

/** One option of a schema: a field with its range. */
class Option {
  constructor(name, rule, value) {
    this.name = name;
    this.rule = rule;
    const id = `option-${name}`;
    const label = has(`option.${name}`) ? t(`option.${name}`) : name;
    this.input = rule.enum ? this.choice(id, value) : this.entry(id, value);
    this.message = h("span", { class: "problem", role: "alert" });
    const about = has(`about.${name}`) ? t(`about.${name}`) : (rule.description ?? "");
    this.view = h("div", { class: "field" }, h("label", { for: id }, label), this.input, h("small", { id: `${id}-about` }, [this.range(), about].filter(Boolean).join(" ")), this.message);
  }

  range() {
    const { minimum, maximum } = this.rule;
    return minimum === undefined ? "" : `${minimum} – ${maximum}.`;
  }

  choice(id, value) {
    const chosen = value ?? this.rule.default;
    const none = this.rule.default === undefined && h("option", { value: "" }, t("create.default"));
    return h("select", { id, "aria-describedby": `${id}-about` }, none, this.rule.enum.map((one) => h("option", { value: one, set: { selected: one === chosen } }, has(`value.${one}`) ? t(`value.${one}`) : one)));
  }

  entry(id, value) {
    const number = this.rule.type !== "string";
    const attributes = number ? { type: "number", min: this.rule.minimum, max: this.rule.maximum, step: this.rule.type === "integer" ? 1 : "any", inputmode: "decimal" } : { type: "text", autocomplete: "off" };
    return h("input", { id, ...attributes, placeholder: t(FREE.has(this.name) ? "optional" : "create.default"), "aria-describedby": `${id}-about`, set: { value: value ?? this.rule.default ?? "" } });
  }

  get value() {
    const text = this.input.value.trim();
    if (text === "") return null;
    return this.rule.type === "string" ? text : Number(text);
  }

  check() {
    const { type, minimum, maximum } = this.rule;
    let words = "";
    const { value, input } = this;
    if (input.validity.badInput || (value !== null && type !== "string" && minimum !== undefined && !(value >= minimum && value <= maximum))) {
      words = t("refuse.range", { low: minimum, high: maximum });
    } else if (type === "integer" && value !== null && !Number.isInteger(value)) words = t("refuse.integer");
    this.message.textContent = words;
    input.classList.toggle("invalid", Boolean(words));
    input.setAttribute("aria-invalid", String(Boolean(words)));
    if (words) input.closest("details").open = true;
    return !words;
  }
}
