// The application: sign-in, routing, language and theme.

import * as api from "./api.js";
import { createForm } from "./create.js";
import { button, emptyState, h, icon, replaceChildren } from "./dom.js";
import { createHealthView } from "./health.js";
import { createJobView } from "./job.js";
import { createJobsView } from "./jobs.js";
import { createKeysView } from "./keys.js";
import { currentLanguage, errorText, setLanguage, t } from "./texts.js";

const PAGES = ["create", "jobs", "keys", "health"];
const THEMES = ["auto", "light", "dark"];
const THEME_KEY = "lipsync.theme";

const main = document.getElementById("main");
let currentView = null;
let routeCount = 0;

// --- signing in ---

api.session.onUnauthorized = () => {
  if (!api.session.me) return; // the sign-in form shows the error itself
  closeView();
  showSignIn(t("enter.wrong"));
};

function showSignIn(problemText = "") {
  api.session.key = "";
  api.session.me = null;
  renderBar();
  const input = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-hint" });
  const problem = h("p", { class: "problem", role: "alert" }, problemText && icon("alert"), problemText);
  const showProblem = (text) => replaceChildren(problem, icon("alert"), text);
  const signInButton = h("button", { class: "button primary big", type: "submit" }, h("span", {}, t("enter.go")), icon("arrow"));
  const submit = async (event) => {
    event.preventDefault();
    if (!input.value.trim()) return showProblem(t("enter.empty"));
    api.session.key = input.value.trim();
    try {
      api.session.me = await api.getCaller();
    } catch (error) {
      api.session.key = "";
      return showProblem(error.status === 401 ? t("enter.wrong") : error.status === 403 ? t("enter.noread") : errorText(error));
    }
    return showRoute();
  };
  const form = h("form", { class: "panel enter-form", on: { submit } }, h("div", { class: "field" }, h("label", { for: "key" }, t("enter.key")), input, h("small", { id: "key-hint" }, t("enter.hint"))), signInButton, problem);
  showView({ title: t("enter.go"), view: h("div", { class: "enter" }, h("div", { class: "enter-words" }, logo(), h("h1", {}, t("enter.title")), h("p", { class: "lead" }, t("enter.words"))), form), close() {} });
  input.focus();
}

async function restoreSession() {
  if (!api.session.key) return showSignIn();
  try {
    api.session.me = await api.getCaller();
  } catch (error) {
    if (error.status === 401 || error.status === 403) return showSignIn(t("enter.wrong"));
    return showView(errorView(error, restoreSession));
  }
  return showRoute();
}

// --- views ---

function closeView() {
  currentView?.close();
  currentView = null;
}

function showView(view) {
  closeView();
  currentView = view;
  document.title = `${view.title} · lipsync`;
  replaceChildren(main, view.view);
}

const errorView = (error, retry) => ({ title: "lipsync", view: emptyState("alert", errorText(error), "", button(t("error.again"), retry, {})), close() {} });

async function createView(page, id) {
  if (page === "jobs") return id ? createJobView(id) : createJobsView();
  if (page === "keys") return createKeysView();
  if (page === "health") return createHealthView();
  return createForm(id ? await api.getJob(id) : null);
}

async function showRoute() {
  if (!api.session.me) return restoreSession();
  const [page = "create", id] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  const count = (routeCount += 1);
  renderBar(page);
  try {
    const view = await createView(page, id);
    if (count === routeCount && api.session.me) showView(view);
    else view.close();
  } catch (error) {
    if (count !== routeCount || !api.session.me) return undefined;
    showView(errorView(error, showRoute));
  }
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  return undefined;
}

// --- around the views ---

const logo = () => h("img", { class: "mark", src: new URL("icon.svg", import.meta.url).href, alt: "" });

function renderBar(currentPage) {
  const links = PAGES.map((page) => h("a", { href: `#/${page}`, "aria-current": page === currentPage ? "page" : null }, t(`nav.${page}`)));
  const skip = h("a", { class: "skip", href: "#main", on: { click: (event) => (event.preventDefault(), main.focus()) } }, t("skip"));
  const language = button(t("bar.language"), () => {
    setLanguage(currentLanguage() === "zh" ? "en" : "zh");
    start();
  }, { kind: "plain", lang: currentLanguage() === "zh" ? "en" : "zh" });
  const theme = button("", switchTheme, { kind: "icon-only", symbol: "theme", "aria-label": t("bar.theme"), title: t("bar.theme") });
  const signOut = api.session.me && button(t("bar.leave"), () => showSignIn(), { kind: "plain" });
  replaceChildren(document.getElementById("bar"), skip, h("a", { class: "brand", href: "#/create" }, logo(), h("span", {}, "lipsync")), api.session.me && h("nav", { "aria-label": t("nav.label") }, links), h("div", { class: "tools" }, language, theme, signOut));
  replaceChildren(document.getElementById("foot"), h("span", {}, t("foot")), h("a", { href: "openapi.json" }, t("foot.api")));
}

function switchTheme() {
  const index = THEMES.indexOf(localStorage.getItem(THEME_KEY) ?? "auto");
  localStorage.setItem(THEME_KEY, THEMES[(index + 1) % THEMES.length]);
  applyTheme();
}

function applyTheme() {
  document.documentElement.dataset.theme = localStorage.getItem(THEME_KEY) ?? "auto";
}

function start() {
  document.documentElement.lang = currentLanguage() === "zh" ? "zh-Hans" : "en";
  applyTheme();
  return showRoute();
}

addEventListener("hashchange", showRoute);
start();
