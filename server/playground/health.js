// Status of the server: devices, workers of all machines, queue, speed, disk.

import * as api from "./api.js";
import { h, icon, replaceChildren } from "./dom.js";
import { errorText, formatBytes, formatDuration, t } from "./texts.js";

const REFRESH_MS = 3000;

/** @returns {Promise<{title, view, close}>} */
export async function createHealthView() {
  const banner = h("div", { class: "health-state", role: "status" });
  const tiles = h("div", { class: "tiles" });
  const view = h("div", { class: "health" }, h("header", { class: "head" }, h("h1", {}, t("health.title"))), banner, tiles, h("p", { class: "row" }, h("a", { class: "button", href: "metrics", target: "_blank" }, t("health.metrics"))));
  const refresh = async () => {
    try {
      const health = await api.getHealth();
      const isShared = sumCounts(health.workers) > health.devices.length;
      const workers = isShared && api.session.hasScope("admin") ? await api.listWorkers() : [];
      showReadiness(banner, health.ready, health.model);
      replaceChildren(tiles, createDevicesTile(health.devices), createQueueTile(health.queue), createSpeedTile(health.speed), createDiskTile(health.disk), isShared && createWorkersTile(health.workers, workers));
    } catch (error) {
      const text = errorText(error);
      if (banner.textContent !== text) replaceChildren(banner, h("p", { class: "banner" }, icon("alert"), text));
    }
  };
  await refresh();
  const timer = setInterval(() => !document.hidden && refresh(), REFRESH_MS);
  return { title: t("health.title"), view, close: () => clearInterval(timer) };
}

function showReadiness(banner, ready, model) {
  const title = t(ready ? "health.ready" : "health.notready");
  if (banner.querySelector("h2")?.textContent === title) return; // screen readers announce each change once
  replaceChildren(banner, h("section", { class: `panel lamp ${ready ? "good" : "waiting"}` }, h("h2", {}, title), h("p", {}, t(ready ? "health.ready.words" : "health.notready.words", { model }))));
}

function createTile(title, ...content) {
  return h("section", { class: "panel tile" }, h("h2", {}, title), content);
}

const createNumber = (value, unit) => h("p", { class: "number" }, h("strong", {}, value), " ", h("span", {}, unit));

function createDevicesTile(devices) {
  const rows = devices.map(({ name, ready, starts, jobs }) => h("li", {}, h("strong", {}, name), h("span", { class: `pill ${ready ? "succeeded" : "waiting"}` }, t(!ready ? "health.down" : jobs > 0 ? "health.works" : "health.up", { count: jobs })), starts > 1 && h("small", {}, t("health.starts", { count: starts }))));
  return createTile(t("health.devices"), devices.length > 0 ? h("ul", { class: "devices" }, rows) : h("p", {}, t("health.nodevices")));
}

const sumCounts = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

/** Create the tile of all machines; `workers` lists them if the key has the scope admin. */
function createWorkersTile(counts, workers) {
  const pill = (condition) => h("span", { class: `pill ${condition === "idle" || condition === "busy" ? "succeeded" : "waiting"}` }, t(`health.${condition}`));
  const present = Object.entries(counts).filter(([, count]) => count > 0);
  const rows = workers.map(({ machine, device, model, condition }) => h("li", {}, h("strong", {}, machine), h("span", {}, `${device} · ${model}`), pill(condition)));
  const summary = h("p", { class: "row" }, present.map(([condition, count]) => [h("strong", {}, count), pill(condition)]));
  return h("section", { class: "panel tile wide" }, h("h2", {}, t("health.everywhere")), summary, rows.length > 0 && h("ul", { class: "devices" }, rows));
}

function createQueueTile({ waiting, running, oldest_wait_s }) {
  const text = waiting > 0 ? t("health.oldest", { time: formatDuration(oldest_wait_s) }) : t("health.nowait");
  return createTile(t("health.queue"), h("div", { class: "pair" }, createNumber(waiting, t("health.waiting")), createNumber(running, t("health.running"))), h("p", { class: "quiet" }, text));
}

function createSpeedTile({ media_s_per_device_s, usual_run_s }) {
  if (media_s_per_device_s === null) return createTile(t("health.speed"), h("p", { class: "number" }, h("strong", {}, "–")), h("p", { class: "quiet" }, t("health.nospeed")));
  return createTile(t("health.speed"), createNumber(media_s_per_device_s.toFixed(2), t("health.realtime")), usual_run_s !== null && h("p", { class: "quiet" }, t("health.usual", { time: formatDuration(usual_run_s) })));
}

function createDiskTile({ free_bytes, total_bytes, least_free_bytes }) {
  return createTile(t("health.disk"), createNumber(formatBytes(free_bytes), t("health.free", { total: formatBytes(total_bytes) })), h("meter", { min: 0, max: total_bytes, value: total_bytes - free_bytes, "aria-label": t("health.disk") }), h("p", { class: "quiet" }, t("health.least", { least: formatBytes(least_free_bytes) })));
}
