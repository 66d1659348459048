// The page: who is signed in, which view is shown, language and light.

import * as api from "./api.js";
import { create } from "./create.js";
import { button, empty, fill, h, icon } from "./dom.js";
import { health } from "./health.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { keys } from "./keys.js";
import { currentLanguage, errorText, setLanguage, t } from "./texts.js";

const PAGES = ["create", "jobs", "keys", "health"];
const THEMES = ["auto", "light", "dark"];
const THEME = "lipsync.theme";

const main = document.getElementById("main");
let shown = null;
let number = 0;

// --- signing in ---

api.session.onRefused = () => {
  if (!api.session.me) return; // the form says so itself
  leave();
  enter(t("enter.wrong"));
};

function enter(why = "") {
  api.session.key = "";
  api.session.me = null;
  bar();
  const input = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-hint" });
  const problem = h("p", { class: "problem", role: "alert" }, why && icon("alert"), why);
  const say = (words) => fill(problem, icon("alert"), words);
  const go = h("button", { class: "button primary big", type: "submit" }, h("span", {}, t("enter.go")), icon("arrow"));
  const submit = async (event) => {
    event.preventDefault();
    if (!input.value.trim()) return say(t("enter.empty"));
    api.session.key = input.value.trim();
    try {
      api.session.me = await api.me();
    } catch (error) {
      api.session.key = "";
      return say(error.status === 401 ? t("enter.wrong") : error.status === 403 ? t("enter.noread") : errorText(error));
    }
    return route();
  };
  const form = h("form", { class: "panel enter-form", on: { submit } }, h("div", { class: "field" }, h("label", { for: "key" }, t("enter.key")), input, h("small", { id: "key-hint" }, t("enter.hint"))), go, problem);
  put({ title: t("enter.go"), view: h("div", { class: "enter" }, h("div", { class: "enter-words" }, mark(), h("h1", {}, t("enter.title")), h("p", { class: "lead" }, t("enter.words"))), form), leave() {} });
  input.focus();
}

async function restore() {
  if (!api.session.key) return enter();
  try {
    api.session.me = await api.me();
  } catch (error) {
    if (error.status === 401 || error.status === 403) return enter(t("enter.wrong"));
    return put({ title: "lipsync", view: empty("alert", errorText(error), "", button(t("error.again"), restore, {})), leave() {} });
  }
  return route();
}

// --- views ---

function leave() {
  shown?.leave();
  shown = null;
}

function put(view) {
  leave();
  shown = view;
  document.title = `${view.title} · lipsync`;
  fill(main, view.view);
}

async function viewOf(page, id) {
  if (page === "jobs") return id ? job(id) : jobs();
  if (page === "keys") return keys();
  if (page === "health") return health();
  return create(id ? await api.job(id) : null);
}

async function route() {
  if (!api.session.me) return restore();
  const [page = "create", id] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  const mine = (number += 1);
  bar(page);
  try {
    const view = await viewOf(page, id);
    if (mine === number && api.session.me) put(view);
    else view.leave();
  } catch (error) {
    if (mine !== number || !api.session.me) return undefined;
    put({ title: "lipsync", view: empty("alert", errorText(error), "", button(t("error.again"), route, {})), leave() {} });
  }
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  return undefined;
}

// --- around the views ---

const mark = () => h("img", { class: "mark", src: new URL("icon.svg", import.meta.url).href, alt: "" });

function bar(now) {
  const links = PAGES.map((page) => h("a", { href: `#/${page}`, "aria-current": page === now ? "page" : null }, t(`nav.${page}`)));
  const skip = h("a", { class: "skip", href: "#main", on: { click: (event) => (event.preventDefault(), main.focus()) } }, t("skip"));
  const language = button(t("bar.language"), () => {
    setLanguage(currentLanguage() === "zh" ? "en" : "zh");
    begin();
  }, { kind: "plain", lang: currentLanguage() === "zh" ? "en" : "zh" });
  const theme = button("", nextTheme, { kind: "icon-only", symbol: "theme", "aria-label": t("bar.theme"), title: t("bar.theme") });
  const out = api.session.me && button(t("bar.leave"), () => enter(), { kind: "plain" });
  fill(document.getElementById("bar"), skip, h("a", { class: "brand", href: "#/create" }, mark(), h("span", {}, "lipsync")), api.session.me && h("nav", { "aria-label": t("nav.label") }, links), h("div", { class: "tools" }, language, theme, out));
  fill(document.getElementById("foot"), h("span", {}, t("foot")), h("a", { href: "openapi.json" }, t("foot.api")));
}

function nextTheme() {
  const now = THEMES.indexOf(localStorage.getItem(THEME) ?? "auto");
  localStorage.setItem(THEME, THEMES[(now + 1) % THEMES.length]);
  showTheme();
}

function showTheme() {
  document.documentElement.dataset.theme = localStorage.getItem(THEME) ?? "auto";
}

function begin() {
  document.documentElement.lang = currentLanguage() === "zh" ? "zh-Hans" : "en";
  showTheme();
  return route();
}

addEventListener("hashchange", route);
begin();
