// All jobs: filters, and a row for each.

import * as api from "./api.js";
import { button, empty, fill, h, icon, notice } from "./dom.js";
import { deleter, pill } from "./job.js";
import { duration, errorText, failureText, moment, t } from "./texts.js";

const REFRESH_MS = 4000;
const PAGE = 24;
const SEARCH_PAUSE_MS = 250;
const STATES = { all: [], active: ["waiting", "running"], succeeded: ["succeeded"], failed: ["failed"], cancelled: ["cancelled"] };
const SINCE = { ever: null, day: 86400, week: 7 * 86400 };

/** @returns {Promise<{title, view, leave}>} */
export async function jobs() {
  const list = new Jobs();
  await list.refresh();
  return { title: t("jobs.title"), view: list.view, leave: () => list.leave() };
}

class Jobs {
  constructor() {
    this.wanted = { state: "all", text: "", since: "ever", everybody: false };
    this.limit = PAGE;
    this.list = h("div", { class: "rows" });
    this.count = h("p", { class: "quiet", role: "status" });
    this.more = button(t("jobs.more"), () => ((this.limit += PAGE), this.refresh()), {});
    this.view = h("div", { class: "jobs" }, h("header", { class: "head" }, h("h1", {}, t("jobs.title")), this.count), this.filters(), this.list, this.more);
    this.timer = setInterval(() => !document.hidden && this.refresh({ quietly: true }), REFRESH_MS);
  }

  leave() {
    clearInterval(this.timer);
    clearTimeout(this.typing);
    this.left = true;
  }

  filters() {
    const pick = (name, options, words) => {
      const select = h("select", { id: `filter-${name}` }, options.map((one) => h("option", { value: one }, words(one))));
      select.addEventListener("change", () => this.want({ [name]: select.value }));
      return h("div", { class: "field" }, h("label", { for: select.id }, t(`jobs.${name}`)), select);
    };
    const search = h("input", { type: "search", id: "filter-text", placeholder: t("jobs.search.hint"), autocomplete: "off" });
    search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.want({ text: search.value.trim() }), SEARCH_PAUSE_MS);
    });
    const everybody = h("input", { type: "checkbox", id: "filter-tenants" });
    everybody.addEventListener("change", () => this.want({ everybody: everybody.checked }));
    const words = (one) => t(one in STATES && one !== "all" && one !== "active" ? `state.${one}` : `jobs.${one}`);
    return h(
      "form",
      { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
      h("div", { class: "field wide" }, h("label", { for: search.id }, t("jobs.search")), search),
      pick("state", Object.keys(STATES), words),
      pick("since", Object.keys(SINCE), (one) => t(`jobs.${one}`)),
      api.session.can("admin") && h("label", { class: "check", for: everybody.id }, everybody, h("span", {}, t("jobs.tenants"))),
    );
  }

  want(change) {
    Object.assign(this.wanted, change);
    this.limit = PAGE;
    return this.refresh();
  }

  async refresh({ quietly = false } = {}) {
    const { state, text, since, everybody } = this.wanted;
    const number = (this.number = (this.number ?? 0) + 1);
    const from = SINCE[since] && Date.now() / 1000 - SINCE[since];
    try {
      const found = { total: 0, jobs: [] };
      while (found.jobs.length < this.limit) { // the server gives at most a hundred at once
        const limit = Math.min(100, this.limit - found.jobs.length);
        const page = await api.jobs({ states: STATES[state], text, since: from, tenant: everybody ? "*" : null, offset: found.jobs.length, limit });
        found.total = page.total;
        found.jobs.push(...page.jobs);
        if (page.jobs.length < limit) break;
      }
      if (number === this.number && !this.left) this.show(found);
    } catch (error) {
      if (quietly) return;
      fill(this.list, empty("alert", errorText(error), "", button(t("error.again"), () => this.refresh(), {})));
    }
  }

  show({ total, jobs: all }) {
    this.count.textContent = t("jobs.count", { count: total });
    this.more.hidden = all.length >= total;
    const said = JSON.stringify(all);
    if (said === this.said) return; // nothing moved: focus and half-pressed buttons stay
    this.said = said;
    const anything = this.wanted.state === "all" && !this.wanted.text && this.wanted.since === "ever";
    if (all.length > 0) fill(this.list, h("ul", {}, all.map((job) => this.row(job))));
    else if (anything) fill(this.list, empty("film", t("jobs.none"), t("jobs.none.words"), h("a", { class: "button primary", href: "#/create" }, t("jobs.first"))));
    else fill(this.list, empty("film", t("jobs.nomatch"), t("jobs.nomatch.words")));
  }

  row(job) {
    const picture = job.thumbnail ? h("img", { src: api.here(job.thumbnail), alt: "", loading: "lazy" }) : icon(job.request.files.image ? "face" : "film");
    const facts = [job.model, moment(job.created_at)];
    if (job.output?.duration_s) facts.push(t("job.lasts", { time: duration(job.output.duration_s) }));
    if (job.state === "succeeded") facts.push(t("job.took", { time: duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) }));
    const own = job.tenant === api.session.me.tenant;
    const ended = api.isFinal(job.state);
    return h(
      "li",
      { class: "row-card", "data-job": job.id },
      h("div", { class: "thumb" }, picture),
      h(
        "div",
        { class: "row-words" },
        h("h2", {}, h("a", { href: `#/jobs/${job.id}` }, job.title || job.model), pill(job), !own && h("span", { class: "pill tenant" }, job.tenant)),
        h("p", { class: "facts" }, facts.join(" · ")),
        job.failure && h("p", { class: "problem" }, icon("alert"), failureText(job.failure)),
        job.progress?.total > 0 && h("progress", { max: job.progress.total, value: job.progress.done, "aria-label": t("watch.bar") }),
      ),
      own && api.session.can("run") && h("div", { class: "row" }, ended ? [h("a", { class: "button quiet-button", href: `#/create/${job.id}` }, icon("again"), h("span", {}, t("job.again"))), deleter(job.id, () => this.refresh())] : this.canceller(job)),
    );
  }

  canceller(job) {
    const cancel = button(t("watch.cancel"), async () => {
      cancel.disabled = true;
      try {
        await api.cancel(job.id);
      } catch (error) {
        notice(errorText(error), "bad");
      }
      await this.refresh();
    }, { kind: "quiet-button", symbol: "close", disabled: job.is_stopping });
    return cancel;
  }
}
