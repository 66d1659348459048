// The form of a new job: kind, files and options, checks, upload and submission.

import * as api from "./api.js";
import { findProblem, inspectFile, mediaKindOf } from "./checks.js";
import { button, h, icon, replaceChildren, showNotice } from "./dom.js";
import { listEntries } from "./entries.js";
import { canRecord, startRecording } from "./record.js";
import { errorText, formatBytes, formatDuration, hasText, joinList, joinSentences, t } from "./texts.js";
import { computePeaks, drawWaveform } from "./wave.js";

const KINDS = [
  ["video", "video"],
  ["image", "face"],
  ["several", "people"],
];
const MAX_WAVEFORM_BYTES = 40e6;
const SYMBOLS = { video: "video", image: "face", audio: "audio" };

/**
 * @param {object|null} earlier a job whose files and options fill the form
 * @returns {Promise<{title: string, view: HTMLElement, close: () => void}>}
 */
export async function createForm(earlier) {
  const entries = await listEntries();
  const hasSegments = Boolean(earlier?.request.input.segments);
  const isEarlier = (entry) => entry.path === earlier?.request.path && (entry.kind === "several") === (hasSegments || "left_audio" in earlier.request.files);
  const form = new JobForm(entries, entries.find(isEarlier) ?? entries[0], earlier);
  return { title: t("nav.create"), view: form.view, close: () => form.close() };
}

class JobForm {
  constructor(entries, entry, earlier) {
    this.entries = entries;
    this.earlier = earlier;
    this.fields = new Map();
    this.values = { ...(earlier?.request.input ?? {}) };
    this.upload = null;
    this.request = { text: "", token: "" };
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
    this.selectEntry(entry);
  }

  close() {
    this.upload?.abort();
    for (const field of this.fields.values()) field.clear();
  }

  selectEntry(entry) {
    this.entry = entry;
    replaceChildren(this.kinds, KINDS.filter(([kind]) => this.entries.some((other) => other.kind === kind)).map(([kind, symbol]) => this.createKindChoice(kind, symbol)));
    const previous = this.fields;
    this.fields = new Map(entry.media.map(({ name, limits, optional }) => [name, previous.get(name) ?? this.createField(name, limits, optional)]));
    for (const [name, field] of previous) if (!this.fields.has(name)) field.clear();
    for (const { name, limits } of entry.media) this.fields.get(name).setLimits(limits);
    const required = [...this.fields.values()].filter((field) => !field.optional);
    replaceChildren(this.media, required.map((field) => field.view));
    this.media.dataset.count = required.length;
    this.showOptions();
    if (!this.upload) this.showStatus("");
  }

  createKindChoice(kind, symbol) {
    const input = h("input", { type: "radio", name: "kind", value: kind, set: { checked: kind === this.entry.kind } });
    input.addEventListener("change", () => {
      this.selectEntry(this.entries.find((entry) => entry.kind === kind));
      this.kinds.querySelector(`input[value="${kind}"]`).focus();
    });
    const label = h("span", { class: "kind-words" }, h("strong", {}, t(`kind.${kind}`)), h("small", {}, t(`kind.${kind}.words`)));
    return h("label", { class: "kind" }, input, icon(symbol), label);
  }

  createField(name, limits, optional) {
    const link = this.earlier && this.entry.files(this.earlier.request.files)[name];
    return new FileField(name, limits, optional, link ?? null, () => this.showStatus(""));
  }

  showOptions() {
    const candidates = this.entries.filter((entry) => entry.kind === this.entry.kind);
    const model = h("select", { id: "model", name: "model" }, candidates.map((entry) => h("option", { value: entry.id, set: { selected: entry === this.entry } }, labelOf(entry))));
    model.addEventListener("change", () => {
      this.selectEntry(this.entries.find((entry) => entry.id === model.value));
      this.panel.querySelector("#model").focus();
    });
    this.title = h("input", { id: "title", maxlength: 200, autocomplete: "off", placeholder: t("create.title.hint"), set: { value: this.values.title ?? "" } });
    this.options = this.entry.options.map(({ name, rule }) => new OptionField(name, rule, this.values[name]));
    this.submitButton = button(t("create.go"), () => this.submit(), { kind: "primary big", symbol: "arrow", id: "go" });
    const canRun = api.session.hasScope("run");
    this.submitButton.disabled = !canRun;
    this.extras.hidden = this.options.length === 0;
    const optionalFiles = [...this.fields.values()].filter((field) => field.optional).map((field) => field.view);
    replaceChildren(this.extras, h("summary", {}, t("create.options")), h("div", { class: "fields" }, this.options.map((option) => option.view)), optionalFiles);
    replaceChildren(
      this.panel,
      h("div", { class: "field" }, h("label", { for: "title" }, t("create.title.label")), this.title),
      h("div", { class: "field" }, h("label", { for: "model" }, t("create.model")), model, h("small", {}, modelNote(api.session.me.model))),
      this.submitButton,
      this.status,
      h("p", { class: "quiet" }, canRun ? t("create.consent") : t("create.norun")),
    );
  }

  /** Check all fields and mark the invalid ones; return whether all are valid. */
  check() {
    const files = [...this.fields.values()].map((field) => field.check());
    const options = this.options.map((option) => option.check());
    return [...files, ...options].every(Boolean);
  }

  /** Scroll to the first invalid field and focus it. */
  focusInvalid() {
    const invalid = this.view.querySelector(".slot.wrong, .invalid");
    invalid.scrollIntoView({ block: "center" });
    const control = invalid.matches(".slot") ? invalid.querySelector("input, button") : invalid;
    control.focus({ preventScroll: true });
  }

  async submit() {
    if (this.upload) return;
    this.showStatus("");
    if (!this.check()) {
      this.showStatus(t("create.check"), "bad");
      this.focusInvalid();
      return;
    }
    this.upload = new AbortController();
    this.submitButton.disabled = true;
    try {
      const input = {};
      for (const [name, field] of this.fields) if (field.file || field.link) input[name] = await this.uploadFile(name, field);
      for (const option of this.options) if (option.value !== null) input[option.name] = option.value;
      input.title = this.title.value.trim() || this.defaultTitle();
      const body = this.entry.body(input);
      const text = JSON.stringify([this.entry.path, body]);
      if (text !== this.request.text) this.request = { text, token: api.createToken() }; // a token stands for one request
      const id = await api.submitJob(this.entry.path, body, this.request.token);
      location.hash = `#/jobs/${id}`;
    } catch (error) {
      this.showStatus(error.name === "AbortError" ? "" : errorText(error), "bad");
    } finally {
      this.upload = null;
      this.submitButton.disabled = false;
    }
  }

  defaultTitle() {
    return [...this.fields.values()].map((field) => field.filename.replace(/\.[^.]+$/, "")).filter(Boolean).join(" + ").slice(0, 200);
  }

  async uploadFile(name, field) {
    if (field.link) return field.link;
    const bar = h("progress", { max: field.file.size, value: 0, "aria-label": t("watch.bar") });
    const text = h("span", {}, "");
    replaceChildren(this.status, text, bar, button(t("create.stop"), () => this.upload?.abort(), { kind: "small" }));
    this.status.className = "status";
    const what = t(`media.${name}`).toLowerCase();
    const showProgress = (sent) => {
      bar.value = sent;
      text.textContent = t("create.uploading", { what, percent: Math.round((100 * sent) / field.file.size) });
    };
    showProgress(0);
    field.link = await api.uploadFile(field.file, showProgress, this.upload.signal);
    replaceChildren(this.status);
    return field.link;
  }

  showStatus(text, kind = "") {
    this.status.className = `status ${kind}`;
    replaceChildren(this.status, text && kind === "bad" && icon("alert"), text);
  }
}

/** Return the label of a model; with two speakers, after the kind of its source. */
const labelOf = ({ id, kind, media }) => (kind === "several" ? `${t(`media.${media[0].name}`)} · ${id}` : id);

/** Describe the model that renders all jobs of this server. */
const modelNote = (model) => joinSentences([t("create.doneby", { model }), hasText(`about.model.${model}`) && t(`about.model.${model}`)]);

/** The field of one file: drop, choose or record; preview; problem. */
class FileField {
  constructor(name, limits, optional, link, onChange) {
    this.name = name;
    this.optional = optional;
    this.onChange = onChange;
    this.kind = mediaKindOf(name);
    this.file = null;
    this.link = link;
    this.view = h("section", { class: "slot", "data-field": name, "aria-label": t(`media.${name}`) });
    this.limits = limits;
    this.recording = null;
    for (const type of ["dragover", "dragleave", "drop"]) this.view.addEventListener(type, (event) => this.onDrag(event));
  }

  get filename() {
    return this.file?.name ?? "";
  }

  setLimits(limits) {
    this.limits = limits;
    this.problem = this.file ? this.getProblem() : null;
    this.show();
  }

  clear() {
    this.recording?.discard();
    this.recording = null;
    if (this.url) URL.revokeObjectURL(this.url);
    Object.assign(this, { file: null, link: null, url: null, facts: null, problem: null });
  }

  check() {
    if (!this.optional && !this.file && !this.link) this.problem = ["refuse.missing", {}];
    this.show();
    return !this.problem;
  }

  getProblem() {
    return findProblem(this.kind, this.facts, this.limits, api.session.me.limits.max_upload_bytes);
  }

  onDrag(event) {
    event.preventDefault();
    this.view.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop" && event.dataTransfer.files[0]) this.setFile(event.dataTransfer.files[0]);
  }

  async setFile(file, known = {}) {
    this.clear();
    this.file = file;
    this.url = URL.createObjectURL(file);
    this.facts = { ...(await inspectFile(file)), ...known };
    if (this.file !== file) return;
    this.problem = this.getProblem();
    this.show();
    this.onChange();
  }

  /** Add what the player reports: duration and pixels, or neither. */
  addFacts(facts) {
    if (!this.facts) return;
    this.facts = { ...this.facts, ...facts };
    this.problem = this.getProblem();
    this.factsText.textContent = this.describeFile();
    this.showProblem();
  }

  /** Note that the browser cannot play the file; the server may be able to. */
  markUnplayable() {
    this.addFacts({ isUnplayable: true });
  }

  describeFile() {
    if (!this.facts) return t("media.kept");
    const { size, duration_s, width, height, isUnplayable } = this.facts;
    const unplayable = isUnplayable && !this.problem && t("media.unseen");
    return [formatBytes(size), Number.isFinite(duration_s) && formatDuration(duration_s), width && `${width} × ${height}`, unplayable].filter(Boolean).join(" · ");
  }

  show() {
    this.factsText = h("span", { class: "facts" }, this.file || this.link ? this.describeFile() : this.describeLimits());
    this.message = h("p", { class: "problem", role: "alert" });
    const head = h("header", {}, icon(SYMBOLS[this.kind]), h("h2", {}, t(`media.${this.name}`)));
    if (this.recording) replaceChildren(this.view, head, this.createRecorder(), this.message);
    else if (this.file || this.link) replaceChildren(this.view, head, this.createPreview(), this.createCaption(), this.message);
    else replaceChildren(this.view, head, this.createPicker(), this.message);
    this.showProblem();
  }

  showProblem() {
    this.view.classList.toggle("wrong", Boolean(this.problem));
    const [name, values] = this.problem ?? [];
    const text = name && t(name, { ...values, formats: values.formats && joinList(values.formats), what: values.what && t(`media.${values.what}`).toLowerCase(), size: values.size && formatBytes(values.size), limit: values.limit && formatBytes(values.limit) });
    replaceChildren(this.message, text && icon("alert"), text);
  }

  describeLimits() {
    const { formats, max_bytes, min_s = 0, max_s, min_side_px = 0, max_side_px } = this.limits;
    const size = formatBytes(Math.min(max_bytes ?? Infinity, api.session.me.limits.max_upload_bytes));
    const parts = [formats ? t("media.upto", { formats: joinList(formats), size }) : t("media.anything", { size })];
    if (max_s) parts.push(t("media.lasting", { low: min_s, high: max_s }));
    if (max_side_px) parts.push(t("media.sides", { low: min_side_px, high: max_side_px }));
    return parts.join(" · ");
  }

  createPicker() {
    const input = h("input", { type: "file", accept: `${this.kind}/*`, id: `file-${this.name}`, class: "file", "aria-label": t(`media.${this.name}`) });
    input.addEventListener("change", () => input.files[0] && this.setFile(input.files[0]));
    const dropZone = h("label", { class: "drop", for: input.id }, icon("upload"), h("span", {}, t("media.drop")), this.factsText);
    const kind = this.kind === "image" ? null : this.kind;
    const recordButton = kind && canRecord(kind) && button(t("media.record"), () => this.record(), { kind: "small", symbol: kind === "audio" ? "mic" : "camera" });
    return h("div", { class: "pick" }, input, dropZone, recordButton);
  }

  createPreview() {
    if (!this.url && !api.isServerFile(this.link)) return h("p", { class: "elsewhere" }, this.link);
    const url = this.url ?? api.toPageUrl(this.link);
    if (this.kind === "image") {
      const image = h("img", { alt: "", src: url });
      image.addEventListener("load", () => this.addFacts({ width: image.naturalWidth, height: image.naturalHeight }));
      return h("div", { class: "shown" }, image);
    }
    const player = h(this.kind, { src: url, controls: true, preload: this.url ? "auto" : "metadata", "aria-label": t(`media.${this.name}`), set: { playsInline: true, muted: this.kind === "video" } });
    player.addEventListener("loadedmetadata", () => {
      if (this.kind === "video" && !player.videoWidth) this.markUnplayable();
      const size = player.videoWidth ? { width: player.videoWidth, height: player.videoHeight } : {};
      this.addFacts(Number.isFinite(player.duration) ? { duration_s: player.duration, ...size } : size);
    });
    player.addEventListener("error", () => player.isConnected && this.markUnplayable());
    return h("div", { class: `shown ${this.kind}` }, this.kind === "audio" && this.createWaveform(), player);
  }

  /** Create the waveform; none if the file is large or the browser cannot decode it. */
  createWaveform() {
    const canvas = h("canvas", { "aria-hidden": "true" });
    if (!this.file || this.file.size > MAX_WAVEFORM_BYTES) return null;
    const peaks = this.file.arrayBuffer().then(computePeaks);
    peaks.then((values) => canvas.isConnected && drawWaveform(canvas, values, 1, 1, []), () => canvas.remove());
    return canvas;
  }

  createCaption() {
    const remove = button("", () => (this.clear(), this.show()), { kind: "icon-only", symbol: "close", "aria-label": t("media.remove", { what: t(`media.${this.name}`) }) });
    return h("div", { class: "named" }, h("div", {}, this.file && h("strong", {}, this.file.name), this.factsText), remove);
  }

  async record() {
    try {
      this.recording = await startRecording(this.kind);
    } catch (error) {
      return showNotice(t("media.norecord", { why: error.message }), "bad");
    }
    this.problem = null;
    this.show();
    this.view.querySelector("button").focus();
  }

  createRecorder() {
    const { stream } = this.recording;
    const start = performance.now();
    const time = h("p", { class: "recording" }, t("media.recording", { seconds: 0 }));
    const timer = setInterval(() => {
      if (!time.isConnected) return clearInterval(timer);
      time.textContent = t("media.recording", { seconds: Math.floor((performance.now() - start) / 1000) });
    }, 500);
    const live = this.kind === "video" && h("video", { class: "live", "aria-hidden": "true", set: { srcObject: stream, muted: true, autoplay: true, playsInline: true } });
    const stop = async () => {
      const { file, duration_s } = await this.recording.stop();
      this.recording = null;
      await this.setFile(file, { duration_s });
    };
    const discard = () => (this.clear(), this.show());
    return h("div", { class: "pick recorder" }, live, time, h("div", { class: "row" }, button(t("media.stop"), stop, { kind: "primary", symbol: "check" }), button(t("media.discard"), discard, { kind: "quiet-button" })));
  }
}

/** Options without a default: an empty field leaves them out. */
const WITHOUT_DEFAULT = new Set(["consent", "prompt"]);

/** The field of one option of a schema. */
class OptionField {
  constructor(name, rule, value) {
    this.name = name;
    this.rule = rule;
    const id = `option-${name}`;
    const label = hasText(`option.${name}`) ? t(`option.${name}`) : name;
    this.input = rule.enum ? this.createSelect(id, value) : this.createInput(id, value);
    this.message = h("span", { class: "problem", role: "alert" });
    const about = hasText(`about.${name}`) ? t(`about.${name}`) : (rule.description ?? "");
    this.view = h("div", { class: "field" }, h("label", { for: id }, label), this.input, h("small", { id: `${id}-about` }, joinSentences([this.rangeText(), about])), this.message);
  }

  rangeText() {
    const { minimum, maximum } = this.rule;
    return minimum === undefined ? "" : t("range", { low: minimum, high: maximum });
  }

  createSelect(id, value) {
    const selected = value ?? this.rule.default;
    const none = this.rule.default === undefined && h("option", { value: "" }, t("create.default"));
    return h("select", { id, "aria-describedby": `${id}-about` }, none, this.rule.enum.map((choice) => h("option", { value: choice, set: { selected: choice === selected } }, hasText(`value.${choice}`) ? t(`value.${choice}`) : choice)));
  }

  createInput(id, value) {
    const isNumber = this.rule.type !== "string";
    const attributes = isNumber ? { type: "number", min: this.rule.minimum, max: this.rule.maximum, step: this.rule.type === "integer" ? 1 : "any", inputmode: "decimal" } : { type: "text", autocomplete: "off" };
    return h("input", { id, ...attributes, placeholder: t(WITHOUT_DEFAULT.has(this.name) ? "optional" : "create.default"), "aria-describedby": `${id}-about`, set: { value: value ?? this.rule.default ?? "" } });
  }

  get value() {
    const text = this.input.value.trim();
    if (text === "") return null;
    return this.rule.type === "string" ? text : Number(text);
  }

  check() {
    const { type, minimum, maximum } = this.rule;
    let problem = "";
    const { value, input } = this;
    if (input.validity.badInput || (value !== null && type !== "string" && minimum !== undefined && !(value >= minimum && value <= maximum))) {
      problem = t("refuse.range", { low: minimum, high: maximum });
    } else if (type === "integer" && value !== null && !Number.isInteger(value)) problem = t("refuse.integer");
    this.message.textContent = problem;
    input.classList.toggle("invalid", Boolean(problem));
    input.setAttribute("aria-invalid", String(Boolean(problem)));
    if (problem) input.closest("details").open = true;
    return !problem;
  }
}
