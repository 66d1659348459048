// The list of jobs, with filters.

import * as api from "./api.js";
import { button, emptyState, h, icon, replaceChildren, showNotice } from "./dom.js";
import { createDeleteButton, createStatePill } from "./job.js";
import { errorText, failureText, formatDuration, formatTime, t } from "./texts.js";

const REFRESH_MS = 4000;
const PAGE_SIZE = 24;
const MAX_REQUEST_SIZE = 100;
const SEARCH_DELAY_MS = 250;
const STATES = { all: [], active: ["waiting", "running"], succeeded: ["succeeded"], failed: ["failed"], cancelled: ["cancelled"] };
const SINCE_S = { ever: null, day: 86400, week: 7 * 86400 };

/** @returns {Promise<{title, view, close}>} */
export async function createJobsView() {
  const list = new JobList();
  await list.refresh();
  return { title: t("jobs.title"), view: list.view, close: () => list.close() };
}

class JobList {
  constructor() {
    this.filter = { state: "all", text: "", since: "ever", allTenants: false };
    this.limit = PAGE_SIZE;
    this.list = h("div", { class: "rows" });
    this.count = h("p", { class: "quiet", role: "status" });
    this.more = button(t("jobs.more"), () => ((this.limit += PAGE_SIZE), this.refresh()), {});
    this.view = h("div", { class: "jobs" }, h("header", { class: "head" }, h("h1", {}, t("jobs.title")), this.count), this.createFilters(), this.list, this.more);
    this.timer = setInterval(() => !document.hidden && this.refresh({ isAutomatic: true }), REFRESH_MS);
  }

  close() {
    clearInterval(this.timer);
    clearTimeout(this.searchTimer);
    this.isClosed = true;
  }

  createFilters() {
    const createSelect = (name, options, labelOf) => {
      const select = h("select", { id: `filter-${name}` }, options.map((option) => h("option", { value: option }, labelOf(option))));
      select.addEventListener("change", () => this.setFilter({ [name]: select.value }));
      return h("div", { class: "field" }, h("label", { for: select.id }, t(`jobs.${name}`)), select);
    };
    const search = h("input", { type: "search", id: "filter-text", placeholder: t("jobs.search.hint"), autocomplete: "off" });
    search.addEventListener("input", () => {
      clearTimeout(this.searchTimer);
      this.searchTimer = setTimeout(() => this.setFilter({ text: search.value.trim() }), SEARCH_DELAY_MS);
    });
    const allTenants = h("input", { type: "checkbox", id: "filter-tenants" });
    allTenants.addEventListener("change", () => this.setFilter({ allTenants: allTenants.checked }));
    const stateLabel = (state) => t(state === "all" || state === "active" ? `jobs.${state}` : `state.${state}`);
    return h(
      "form",
      { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
      h("div", { class: "field wide" }, h("label", { for: search.id }, t("jobs.search")), search),
      createSelect("state", Object.keys(STATES), stateLabel),
      createSelect("since", Object.keys(SINCE_S), (period) => t(`jobs.${period}`)),
      api.session.hasScope("admin") && h("label", { class: "check", for: allTenants.id }, allTenants, h("span", {}, t("jobs.tenants"))),
    );
  }

  setFilter(change) {
    Object.assign(this.filter, change);
    this.limit = PAGE_SIZE;
    return this.refresh();
  }

  async refresh({ isAutomatic = false } = {}) {
    const { state, text, since, allTenants } = this.filter;
    const request = (this.latestRequest = (this.latestRequest ?? 0) + 1);
    const since_s = SINCE_S[since] && Date.now() / 1000 - SINCE_S[since];
    try {
      const result = { total: 0, jobs: [] };
      while (result.jobs.length < this.limit) {
        const limit = Math.min(MAX_REQUEST_SIZE, this.limit - result.jobs.length);
        const page = await api.listJobs({ states: STATES[state], text, since: since_s, tenant: allTenants ? "*" : null, offset: result.jobs.length, limit });
        result.total = page.total;
        result.jobs.push(...page.jobs);
        if (page.jobs.length < limit) break;
      }
      if (request === this.latestRequest && !this.isClosed) this.show(result);
    } catch (error) {
      if (isAutomatic) return;
      replaceChildren(this.list, emptyState("alert", errorText(error), "", button(t("error.again"), () => this.refresh(), {})));
    }
  }

  show({ total, jobs }) {
    this.count.textContent = t("jobs.count", { count: total });
    this.more.hidden = jobs.length >= total;
    const content = JSON.stringify(jobs);
    if (content === this.content) return; // unchanged: focus and armed delete buttons stay
    this.content = content;
    const isUnfiltered = this.filter.state === "all" && !this.filter.text && this.filter.since === "ever";
    if (jobs.length > 0) replaceChildren(this.list, h("ul", {}, jobs.map((job) => this.createRow(job))));
    else if (isUnfiltered) replaceChildren(this.list, emptyState("video", t("jobs.none"), t("jobs.none.words"), h("a", { class: "button primary", href: "#/create" }, t("jobs.first"))));
    else replaceChildren(this.list, emptyState("video", t("jobs.nomatch"), t("jobs.nomatch.words")));
  }

  createRow(job) {
    const thumbnail = job.thumbnail ? h("img", { src: api.toPageUrl(job.thumbnail), alt: "", loading: "lazy" }) : icon(job.request.files.image ? "face" : "video");
    const facts = [job.model, formatTime(job.created_at)];
    if (job.output?.duration_s) facts.push(t("job.lasts", { time: formatDuration(job.output.duration_s) }));
    if (job.state === "succeeded") facts.push(t("job.took", { time: formatDuration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) }));
    const isOwn = job.tenant === api.session.me.tenant;
    const hasEnded = api.isFinal(job.state);
    return h(
      "li",
      { class: "row-card", "data-job": job.id },
      h("div", { class: "thumb" }, thumbnail),
      h(
        "div",
        { class: "row-words" },
        h("h2", {}, h("a", { href: `#/jobs/${job.id}` }, job.title || job.model), createStatePill(job), !isOwn && h("span", { class: "pill tenant" }, job.tenant)),
        h("p", { class: "facts" }, facts.join(" · ")),
        job.failure && h("p", { class: "problem" }, icon("alert"), failureText(job.failure)),
        job.progress?.total > 0 && h("progress", { max: job.progress.total, value: job.progress.done, "aria-label": t("watch.bar") }),
      ),
      isOwn && api.session.hasScope("run") && h("div", { class: "row" }, hasEnded ? [h("a", { class: "button quiet-button", href: `#/create/${job.id}` }, icon("repeat"), h("span", {}, t("job.again"))), createDeleteButton(job.id, () => this.refresh())] : this.createCancelButton(job)),
    );
  }

  createCancelButton(job) {
    const cancel = button(t("watch.cancel"), async () => {
      cancel.disabled = true;
      try {
        await api.cancelJob(job.id);
      } catch (error) {
        showNotice(errorText(error), "bad");
      }
      await this.refresh();
    }, { kind: "quiet-button", symbol: "close", disabled: job.is_stopping });
    return cancel;
  }
}
