// One job from its place in the queue to the film: follows it, plays what is finished, then shows its end.

import * as api from "./api.js";
import { compare } from "./compare.js";
import { badge } from "./credentials.js";
import { button, empty, fill, h, icon, notice } from "./dom.js";
import { Preview } from "./preview.js";
import { duration, errorText, failureText, moment, t } from "./texts.js";

const STAGES = ["faces", "audio", "render", "assemble"];

/** The coloured word for a state. */
export function pill(job) {
  const state = job.is_stopping ? "stopping" : job.state;
  return h("span", { class: `pill ${state}` }, t(`state.${state}`));
}

/** Delete after a second press; `done` is called when it is gone. */
export function deleter(id, done) {
  const remove = button(t("job.delete"), async () => {
    if (!remove.classList.contains("sure")) {
      remove.classList.add("sure");
      remove.lastChild.textContent = t("job.delete.sure");
      remove.addEventListener("blur", () => (remove.classList.remove("sure"), (remove.lastChild.textContent = t("job.delete"))), { once: true });
      return;
    }
    remove.disabled = true;
    try {
      await api.remove(id);
      notice(t("job.deleted"));
      done();
    } catch (error) {
      remove.disabled = false;
      notice(errorText(error), "bad");
    }
  }, { kind: "quiet-button", symbol: "bin" });
  return remove;
}

/** @returns {Promise<{title, view, leave}>} */
export async function job(id) {
  const shown = new JobView(id);
  return { title: t("nav.jobs"), view: shown.view, leave: () => shown.leave() };
}

class JobView {
  constructor(id) {
    this.id = id;
    this.told = null;
    this.compared = null;
    this.link = h("p", { class: "banner", role: "status", hidden: true }, icon("alert"), t("watch.lost"));
    this.head = h("header", { class: "head" });
    this.body = h("div", { class: "job-body" });
    this.view = h("article", { class: "job", "data-job": id }, this.head, this.link, this.body);
    this.stop = api.follow(id, {
      onJob: (job) => this.show(job),
      onSegment: (stretch) => this.watching().add(stretch),
      onGone: () => this.gone(),
      onLink: (state) => (this.link.hidden = state === "open"),
    });
  }

  leave() {
    this.stop();
    this.watch?.close();
    this.compared?.leave();
  }

  gone() {
    fill(this.head);
    fill(this.body, empty("film", t("job.gone"), t("job.gone.words"), h("a", { class: "button", href: "#/jobs" }, t("nav.jobs"))));
  }

  watching() {
    this.watch ??= new Watch(() => this.cancel());
    return this.watch;
  }

  show(job) {
    const before = this.told;
    this.told = job;
    this.link.hidden = true;
    const changed = before?.state !== job.state || before?.is_stopping !== job.is_stopping;
    if (changed) this.showHead(job);
    if (!api.isFinal(job.state)) {
      const watch = this.watching();
      if (!watch.view.isConnected) fill(this.body, watch.view);
      watch.show(job);
    } else if (changed) this.showEnd(job);
  }

  showHead(job) {
    const facts = [job.model, moment(job.created_at)];
    if (job.output?.duration_s) facts.push(t("job.lasts", { time: duration(job.output.duration_s) }));
    if (job.state === "succeeded") facts.push(t("job.took", { time: duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) }));
    if (job.tenant !== api.session.me.tenant) facts.push(job.tenant);
    fill(
      this.head,
      h("div", { class: "title-line" }, h("h1", {}, job.title || job.model), pill(job)),
      h("p", { class: "facts" }, facts.join(" · ")),
      api.isFinal(job.state) && this.actions(job),
    );
  }

  actions(job) {
    if (job.tenant !== api.session.me.tenant) return h("p", { class: "quiet" }, t("job.other"));
    if (!api.session.can("run")) return null;
    const again = h("a", { class: "button", href: `#/create/${job.id}` }, icon("again"), h("span", {}, t("job.again")));
    return h("div", { class: "row" }, again, deleter(job.id, () => (location.hash = "#/jobs")));
  }

  showEnd(job) {
    const at = this.watch?.video.currentTime ?? 0;
    this.watch?.close();
    if (job.state === "succeeded") {
      this.compared = compare(job, at);
      fill(this.body, badge(job), told(job), this.compared.view);
    } else if (job.state === "failed") {
      fill(this.body, h("section", { class: "panel bad", role: "alert" }, h("h2", {}, icon("alert"), t("job.failed")), h("p", { class: "lead" }, failureText(job.failure)), h("p", { class: "quiet" }, h("code", {}, job.failure.code))));
    } else fill(this.body, empty("close", t("job.cancelled"), t("job.cancelled.words")));
  }

  async cancel() {
    try {
      await api.cancel(this.id);
    } catch (error) {
      notice(errorText(error), "bad");
    }
  }
}

const wasTriedAgain = ({ code }) => code === "tried_again";

/** What a finished job did not do. */
function told(job) {
  const sentences = job.warnings.filter((warning) => !wasTriedAgain(warning)).map(({ message }) => message);
  return sentences.map((sentence) => h("p", { class: "banner" }, icon("alert"), sentence));
}

/** The waiting and working half: steps, numbers, and the film so far. */
class Watch {
  constructor(cancel) {
    this.video = h("video", { controls: true, "aria-label": t("job.video"), hidden: true, set: { playsInline: true } });
    this.soon = h("div", { class: "soon" }, wave(), h("p", {}, t("watch.soon")));
    this.ready = h("p", { class: "ready", role: "status", hidden: true });
    this.preview = new Preview(this.video, { onReady: (stop_s) => this.playing(stop_s), onUnable: () => this.unable() });
    this.steps = h("ol", { class: "steps", "aria-label": t("watch.stages") });
    this.bar = h("progress", { max: 1, "aria-label": t("watch.bar") });
    this.doing = h("h2", { class: "doing", role: "status" });
    this.numbers = h("p", { class: "numbers" });
    this.warned = h("p", { class: "banner", hidden: true }, icon("alert"), t("watch.warned"));
    this.cancel = button(t("watch.cancel"), () => ((this.cancel.disabled = true), cancel()), { symbol: "close" });
    this.cancel.hidden = !api.session.can("run");
    this.stages = STAGES;
    this.view = h(
      "div",
      { class: "watch" },
      h("div", { class: "screen" }, this.video, this.soon),
      h("section", { class: "panel" }, this.steps, this.doing, this.bar, this.numbers, this.ready, this.warned, this.cancel),
    );
  }

  add(stretch) {
    this.preview.add(stretch);
  }

  playing(stop_s) {
    this.video.hidden = false;
    this.soon.hidden = true;
    this.ready.hidden = false;
    this.ready.textContent = t("watch.preview", { seconds: stop_s.toFixed(1) });
  }

  unable() {
    this.soon.lastChild.textContent = t("watch.nopreview");
  }

  show(job) {
    const { wait, progress } = job;
    this.warned.hidden = !job.warnings.some(wasTriedAgain);
    this.cancel.disabled = job.is_stopping || job.tenant !== api.session.me.tenant;
    if (progress?.stage === "motion") this.stages = ["motion", ...STAGES];
    const stage = wait ? "wait" : (progress?.stage ?? "prepare");
    this.showSteps(stage);
    const doing = wait ? queued(wait) : progress ? t(`watch.doing.${stage}`) : t("watch.prepare");
    if (this.doing.textContent !== doing) this.doing.textContent = doing;
    if (progress?.total) {
      this.bar.max = progress.total;
      this.bar.value = progress.done;
    } else this.bar.removeAttribute("value");
    this.numbers.textContent = progress ? numbersOf(progress) : "";
  }

  showSteps(now) {
    if (this.now === now && this.steps.childElementCount === this.stages.length + 1) return;
    this.now = now;
    const all = ["wait", ...this.stages];
    const at = now === "prepare" ? 1 : all.indexOf(now);
    fill(this.steps, all.map((stage, k) => h("li", { class: k < at ? "past" : k === at ? "now" : "", "aria-current": k === at ? "step" : null }, h("span", {}, t(`stage.${stage}`)))));
  }

  close() {
    this.preview.close();
    this.video.pause();
  }
}

function queued({ position, estimated_start }) {
  const place = position === 0 ? t("watch.next") : t("watch.behind", { count: position });
  return estimated_start ? `${place} ${t("watch.starts", { time: moment(estimated_start) })}` : place;
}

function numbersOf({ stage, done, total, per_second, left_s }) {
  const parts = [];
  if (total && stage !== "assemble" && stage !== "audio") parts.push(t("watch.frames", { done, total }));
  if (per_second > 0 && stage === "render") parts.push(t("watch.speed", { speed: per_second.toFixed(1) }));
  if (left_s !== null && stage !== "assemble") parts.push(t("watch.left", { time: duration(left_s) }));
  return parts.join(" · ");
}

function wave() {
  return h("div", { class: "wave", "aria-hidden": "true" }, Array.from({ length: 9 }, (_, k) => h("i", { style: { "--k": k } })));
}
