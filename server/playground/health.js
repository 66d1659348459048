// How the server is: devices, workers of all machines, queue, speed, disk.

import * as api from "./api.js";
import { fill, h, icon } from "./dom.js";
import { bytes, duration, errorText, t } from "./texts.js";

const REFRESH_MS = 3000;

/** @returns {Promise<{title, view, leave}>} */
export async function health() {
  const state = h("div", { class: "health-state", role: "status" });
  const tiles = h("div", { class: "tiles" });
  const view = h("div", { class: "health" }, h("header", { class: "head" }, h("h1", {}, t("health.title"))), state, tiles, h("p", { class: "row" }, h("a", { class: "button", href: "metrics", target: "_blank" }, t("health.metrics"))));
  const refresh = async () => {
    try {
      const told = await api.health();
      const isShared = total(told.workers) > told.devices.length;
      const all = isShared && api.session.can("admin") ? await api.workers() : [];
      showState(state, told.ready, told.model);
      fill(tiles, devices(told), queue(told.queue), speed(told.speed), disk(told.disk), isShared && everywhere(told.workers, all));
    } catch (error) {
      const words = errorText(error);
      if (state.textContent !== words) fill(state, h("p", { class: "banner" }, icon("alert"), words));
    }
  };
  await refresh();
  const timer = setInterval(() => !document.hidden && refresh(), REFRESH_MS);
  return { title: t("health.title"), view, leave: () => clearInterval(timer) };
}

function showState(place, ready, model) {
  const title = t(ready ? "health.ready" : "health.notready");
  if (place.querySelector("h2")?.textContent === title) return; // said once to screen readers
  fill(place, h("section", { class: `panel lamp ${ready ? "good" : "waiting"}` }, h("h2", {}, title), h("p", {}, t(ready ? "health.ready.words" : "health.notready.words", { model }))));
}

function tile(words, ...content) {
  return h("section", { class: "panel tile" }, h("h2", {}, words), content);
}

const number = (value, unit) => h("p", { class: "number" }, h("strong", {}, value), " ", h("span", {}, unit));

function devices({ devices: all }) {
  const rows = all.map(({ name, ready, starts, jobs }) => h("li", {}, h("strong", {}, name), h("span", { class: `pill ${ready ? "succeeded" : "waiting"}` }, t(!ready ? "health.down" : jobs > 0 ? "health.works" : "health.up", { count: jobs })), starts > 1 && h("small", {}, t("health.starts", { count: starts }))));
  return tile(t("health.devices"), all.length > 0 ? h("ul", { class: "devices" }, rows) : h("p", {}, t("health.nodevices")));
}

const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

/** Workers of all machines; `all` names them where the key may know. */
function everywhere(counts, all) {
  const pill = (condition) => h("span", { class: `pill ${condition === "idle" || condition === "busy" ? "succeeded" : "waiting"}` }, t(`health.${condition}`));
  const said = Object.entries(counts).filter(([, count]) => count > 0);
  const rows = all.map(({ machine, device, model, condition }) => h("li", {}, h("strong", {}, machine), h("span", {}, `${device} · ${model}`), pill(condition)));
  const counted = h("p", { class: "row" }, said.map(([condition, count]) => [h("strong", {}, count), pill(condition)]));
  return h("section", { class: "panel tile wide" }, h("h2", {}, t("health.everywhere")), counted, rows.length > 0 && h("ul", { class: "devices" }, rows));
}

function queue({ waiting, running, oldest_wait_s }) {
  const words = waiting > 0 ? t("health.oldest", { time: duration(oldest_wait_s) }) : t("health.nowait");
  return tile(t("health.queue"), h("div", { class: "pair" }, number(waiting, t("health.waiting")), number(running, t("health.running"))), h("p", { class: "quiet" }, words));
}

function speed({ media_s_per_device_s, usual_run_s }) {
  if (media_s_per_device_s === null) return tile(t("health.speed"), h("p", { class: "number" }, h("strong", {}, "–")), h("p", { class: "quiet" }, t("health.nospeed")));
  return tile(t("health.speed"), number(media_s_per_device_s.toFixed(2), t("health.realtime")), usual_run_s !== null && h("p", { class: "quiet" }, t("health.usual", { time: duration(usual_run_s) })));
}

function disk({ free_bytes, total_bytes, least_free_bytes }) {
  return tile(t("health.disk"), number(bytes(free_bytes), t("health.free", { total: bytes(total_bytes) })), h("meter", { min: 0, max: total_bytes, value: total_bytes - free_bytes, "aria-label": t("health.disk") }), h("p", { class: "quiet" }, t("health.least", { least: bytes(least_free_bytes) })));
}
