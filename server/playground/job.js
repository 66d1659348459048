// One job, from the queue to the result: its progress, the preview of finished segments, then its end.

import * as api from "./api.js";
import { createComparison } from "./compare.js";
import { createBadge } from "./credentials.js";
import { button, emptyState, h, icon, replaceChildren, showNotice } from "./dom.js";
import { Preview } from "./preview.js";
import { errorText, failureText, formatDuration, formatTime, joinSentences, t } from "./texts.js";

const STAGES = ["faces", "audio", "render", "assemble"];

/** Create the label of a job's state. */
export function createStatePill(job) {
  const state = job.is_stopping ? "stopping" : job.state;
  return h("span", { class: `pill ${state}` }, t(`state.${state}`));
}

/** Create a button that deletes a job at its second click, and then calls `onDeleted`. */
export function createDeleteButton(id, onDeleted) {
  const remove = button(t("job.delete"), async () => {
    if (!remove.classList.contains("sure")) {
      remove.classList.add("sure");
      remove.lastChild.textContent = t("job.delete.sure");
      remove.addEventListener("blur", () => (remove.classList.remove("sure"), (remove.lastChild.textContent = t("job.delete"))), { once: true });
      return;
    }
    remove.disabled = true;
    try {
      await api.deleteJob(id);
      showNotice(t("job.deleted"));
      onDeleted();
    } catch (error) {
      remove.disabled = false;
      showNotice(errorText(error), "bad");
    }
  }, { kind: "quiet-button", symbol: "trash" });
  return remove;
}

/** @returns {Promise<{title, view, close}>} */
export async function createJobView(id) {
  const jobView = new JobView(id);
  return { title: t("nav.jobs"), view: jobView.view, close: () => jobView.close() };
}

class JobView {
  constructor(id) {
    this.id = id;
    this.job = null;
    this.comparison = null;
    this.lostBanner = h("p", { class: "banner", role: "status", hidden: true }, icon("alert"), t("watch.lost"));
    this.head = h("header", { class: "head" });
    this.body = h("div", { class: "job-body" });
    this.view = h("article", { class: "job", "data-job": id }, this.head, this.lostBanner, this.body);
    this.stopFollowing = api.followJob(id, {
      onJob: (job) => this.show(job),
      onSegment: (segment) => this.openProgress().add(segment),
      onGone: () => this.showGone(),
      onLink: (state) => (this.lostBanner.hidden = state === "open"),
    });
  }

  close() {
    this.stopFollowing();
    this.progress?.close();
    this.comparison?.close();
  }

  showGone() {
    replaceChildren(this.head);
    replaceChildren(this.body, emptyState("video", t("job.gone"), t("job.gone.words"), h("a", { class: "button", href: "#/jobs" }, t("nav.jobs"))));
  }

  openProgress() {
    this.progress ??= new ProgressView(() => this.cancel());
    return this.progress;
  }

  show(job) {
    const previous = this.job;
    this.job = job;
    this.lostBanner.hidden = true;
    const hasChanged = previous?.state !== job.state || previous?.is_stopping !== job.is_stopping;
    if (hasChanged) this.showHead(job);
    if (!api.isFinal(job.state)) {
      const progress = this.openProgress();
      if (!progress.view.isConnected) replaceChildren(this.body, progress.view);
      progress.show(job);
    } else if (hasChanged) this.showEnd(job);
  }

  showHead(job) {
    const facts = [job.model, formatTime(job.created_at)];
    if (job.output?.duration_s) facts.push(t("job.lasts", { time: formatDuration(job.output.duration_s) }));
    if (job.state === "succeeded") facts.push(t("job.took", { time: formatDuration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) }));
    if (job.tenant !== api.session.me.tenant) facts.push(job.tenant);
    replaceChildren(
      this.head,
      h("div", { class: "title-line" }, h("h1", {}, job.title || job.model), createStatePill(job)),
      h("p", { class: "facts" }, facts.join(" · ")),
      api.isFinal(job.state) && this.createActions(job),
    );
  }

  createActions(job) {
    if (job.tenant !== api.session.me.tenant) return h("p", { class: "quiet" }, t("job.other"));
    if (!api.session.hasScope("run")) return null;
    const again = h("a", { class: "button", href: `#/create/${job.id}` }, icon("repeat"), h("span", {}, t("job.again")));
    return h("div", { class: "row" }, again, createDeleteButton(job.id, () => (location.hash = "#/jobs")));
  }

  showEnd(job) {
    const position_s = this.progress?.video.currentTime ?? 0;
    this.progress?.close();
    if (job.state === "succeeded") {
      this.comparison = createComparison(job, position_s);
      replaceChildren(this.body, createBadge(job), createWarnings(job), this.comparison.view);
    } else if (job.state === "failed") {
      replaceChildren(this.body, h("section", { class: "panel bad", role: "alert" }, h("h2", {}, icon("alert"), t("job.failed")), h("p", { class: "lead" }, failureText(job.failure)), h("p", { class: "quiet" }, h("code", {}, job.failure.code))));
    } else replaceChildren(this.body, emptyState("close", t("job.cancelled"), t("job.cancelled.words")));
  }

  async cancel() {
    try {
      await api.cancelJob(this.id);
    } catch (error) {
      showNotice(errorText(error), "bad");
    }
  }
}

const isRetryWarning = ({ code }) => code === "tried_again";

/** Create the warnings of a finished job. */
function createWarnings(job) {
  const sentences = job.warnings.filter((warning) => !isRetryWarning(warning)).map(({ message }) => message);
  return sentences.map((sentence) => h("p", { class: "banner" }, icon("alert"), sentence));
}

/** A waiting or running job: steps, numbers, and the preview. */
class ProgressView {
  constructor(onCancel) {
    this.video = h("video", { controls: true, "aria-label": t("job.video"), hidden: true, set: { playsInline: true } });
    this.placeholder = h("div", { class: "soon" }, createWaveAnimation(), h("p", {}, t("watch.soon")));
    this.ready = h("p", { class: "ready", role: "status", hidden: true });
    this.preview = new Preview(this.video, { onReady: (stop_s) => this.showPreview(stop_s), onUnsupported: () => this.showUnsupported() });
    this.steps = h("ol", { class: "steps", "aria-label": t("watch.stages") });
    this.bar = h("progress", { max: 1, "aria-label": t("watch.bar") });
    this.stageText = h("h2", { class: "doing", role: "status" });
    this.numbers = h("p", { class: "numbers" });
    this.retryBanner = h("p", { class: "banner", hidden: true }, icon("alert"), t("watch.warned"));
    this.cancel = button(t("watch.cancel"), () => ((this.cancel.disabled = true), onCancel()), { symbol: "close" });
    this.cancel.hidden = !api.session.hasScope("run");
    this.stages = STAGES;
    this.view = h(
      "div",
      { class: "watch" },
      h("div", { class: "screen" }, this.video, this.placeholder),
      h("section", { class: "panel" }, this.steps, this.stageText, this.bar, this.numbers, this.ready, this.retryBanner, this.cancel),
    );
  }

  add(segment) {
    this.preview.add(segment);
  }

  showPreview(stop_s) {
    this.video.hidden = false;
    this.placeholder.hidden = true;
    this.ready.hidden = false;
    this.ready.textContent = t("watch.preview", { seconds: stop_s.toFixed(1) });
  }

  showUnsupported() {
    this.placeholder.lastChild.textContent = t("watch.nopreview");
  }

  show(job) {
    const { wait, progress } = job;
    this.retryBanner.hidden = !job.warnings.some(isRetryWarning);
    this.cancel.disabled = job.is_stopping || job.tenant !== api.session.me.tenant;
    if (progress?.stage === "motion") this.stages = ["motion", ...STAGES];
    const stage = wait ? "wait" : (progress?.stage ?? "prepare");
    this.showSteps(stage);
    const text = wait ? waitText(wait) : progress ? t(`watch.doing.${stage}`) : t("watch.prepare");
    if (this.stageText.textContent !== text) this.stageText.textContent = text;
    if (progress?.total) {
      this.bar.max = progress.total;
      this.bar.value = progress.done;
    } else this.bar.removeAttribute("value");
    this.numbers.textContent = progress ? numbersText(progress) : "";
  }

  showSteps(current) {
    if (this.currentStage === current && this.steps.childElementCount === this.stages.length + 1) return;
    this.currentStage = current;
    const stages = ["wait", ...this.stages];
    const index = current === "prepare" ? 1 : stages.indexOf(current);
    replaceChildren(this.steps, stages.map((stage, k) => h("li", { class: k < index ? "past" : k === index ? "now" : "", "aria-current": k === index ? "step" : null }, h("span", {}, t(`stage.${stage}`)))));
  }

  close() {
    this.preview.close();
    this.video.pause();
  }
}

function waitText({ position, estimated_start }) {
  const text = position === 0 ? t("watch.next") : t("watch.behind", { count: position });
  return joinSentences([text, estimated_start && t("watch.starts", { time: formatTime(estimated_start) })]);
}

function numbersText({ stage, done, total, per_second, left_s }) {
  const parts = [];
  if (total && stage !== "assemble" && stage !== "audio") parts.push(t("watch.frames", { done, total }));
  if (per_second > 0 && stage === "render") parts.push(t("watch.speed", { speed: per_second.toFixed(1) }));
  if (left_s !== null && stage !== "assemble") parts.push(t("watch.left", { time: formatDuration(left_s) }));
  return parts.join(" · ");
}

function createWaveAnimation() {
  return h("div", { class: "wave", "aria-hidden": "true" }, Array.from({ length: 9 }, (_, k) => h("i", { style: { "--k": k } })));
}
