// Badge with the verdict on a result's content credentials, and their signer.

import * as api from "./api.js";
import { h, icon, replaceChildren } from "./dom.js";
import { joinSentences, t } from "./texts.js";

const SYMBOLS = { trusted: "check", unknown_signer: "alert", invalid: "alert", none: "alert" };

/** Create the badge of a finished job; its content is loaded. */
export function createBadge(job) {
  const view = h("div", { class: "credentials", role: "status" }, h("p", { class: "quiet" }, t("credentials.looking")));
  loadBadge(view, job.id);
  return view;
}

async function loadBadge(view, id) {
  let result;
  try {
    result = await api.getCredentials(id);
  } catch {
    return replaceChildren(view, h("p", { class: "quiet" }, t("credentials.unable")));
  }
  const verdict = h("p", { class: `badge ${result.verdict}` }, icon(SYMBOLS[result.verdict]), h("span", {}, t(`credentials.${result.verdict}`)));
  const facts = [];
  if (result.signer) facts.push(t(result.is_development ? "credentials.development" : "credentials.signer", { name: result.signer }));
  if (result.made?.model) facts.push(t("credentials.made", { model: result.made.model, seed: result.made.seed }));
  if (result.sources.some((source) => source.signer)) facts.push(t("credentials.source"));
  return replaceChildren(view, verdict, facts.length > 0 && h("p", { class: "quiet" }, joinSentences(facts)));
}
