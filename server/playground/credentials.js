// Whether a film says by signed content credentials that it was generated, and whose signature that is.

import * as api from "./api.js";
import { fill, h, icon } from "./dom.js";
import { t } from "./texts.js";

const SYMBOLS = { trusted: "check", unknown_signer: "alert", invalid: "alert", none: "alert" };

/** A badge of a finished job that fills itself. */
export function badge(job) {
  const view = h("div", { class: "credentials", role: "status" }, h("p", { class: "quiet" }, t("credentials.looking")));
  show(view, job.id);
  return view;
}

async function show(view, id) {
  let found;
  try {
    found = await api.credentials(id);
  } catch {
    return fill(view, h("p", { class: "quiet" }, t("credentials.unable")));
  }
  const word = h("p", { class: `badge ${found.verdict}` }, icon(SYMBOLS[found.verdict]), h("span", {}, t(`credentials.${found.verdict}`)));
  const facts = [];
  if (found.signer) facts.push(t(found.is_development ? "credentials.development" : "credentials.signer", { name: found.signer }));
  if (found.made?.model) facts.push(t("credentials.made", { model: found.made.model, seed: found.made.seed }));
  if (found.sources.some((source) => source.signer)) facts.push(t("credentials.source"));
  return fill(view, word, facts.length > 0 && h("p", { class: "quiet" }, facts.join(" ")));
}
