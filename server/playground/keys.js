// API keys: create one, which is shown once; list and revoke.

import * as api from "./api.js";
import { button, emptyState, h, icon, replaceChildren, showNotice } from "./dom.js";
import { errorText, formatTime, joinList, t } from "./texts.js";

const SCOPES = ["run", "read", "metrics", "admin"];
const USUAL_SCOPES = ["run", "read"];
const TENANT_PATTERN = /^[A-Za-z0-9_-]{1,64}$/;

/** @returns {Promise<{title, view, close}>} */
export async function createKeysView() {
  const { me } = api.session;
  const head = h("header", { class: "head" }, h("h1", {}, t("keys.title")), h("p", { class: "lead" }, t("keys.words")));
  if (!api.session.hasScope("admin")) {
    const text = t("keys.noadmin.words", { name: me.name || me.key_id, tenant: me.tenant, scopes: joinList(me.scopes) });
    return { title: t("keys.title"), view: h("div", {}, head, emptyState("alert", t("keys.noadmin"), text)), close() {} };
  }
  const list = new KeyList(head);
  await list.refresh();
  return { title: t("keys.title"), view: list.view, close() {} };
}

class KeyList {
  constructor(head) {
    this.list = h("div", { class: "rows" });
    this.newKey = h("div", {});
    this.view = h("div", { class: "keys" }, head, this.createForm(), this.newKey, this.list);
  }

  createForm() {
    this.name = h("input", { id: "key-name", maxlength: 100, autocomplete: "off", placeholder: t("optional") });
    this.tenant = h("input", { id: "key-tenant", maxlength: 64, autocomplete: "off", set: { value: api.session.me.tenant } });
    this.scopes = SCOPES.map((scope) => h("input", { type: "checkbox", value: scope, set: { checked: USUAL_SCOPES.includes(scope) } }));
    this.problem = h("p", { class: "problem", role: "alert" });
    const createField = (input, label) => h("div", { class: "field" }, h("label", { for: input.id }, label), input);
    const scopes = h("fieldset", { class: "field" }, h("legend", {}, t("keys.scopes")), h("div", { class: "row" }, this.scopes.map((input) => h("label", { class: "check" }, input, h("span", {}, t(`keys.${input.value}`))))));
    const submit = h("button", { class: "button primary", type: "submit" }, h("span", {}, t("keys.create")));
    return h("form", { class: "panel key-form", on: { submit: (event) => (event.preventDefault(), this.create()) } }, createField(this.name, t("keys.name")), createField(this.tenant, t("keys.tenant")), scopes, submit, this.problem);
  }

  async create() {
    const scopes = this.scopes.filter((input) => input.checked).map((input) => input.value);
    const tenant = this.tenant.value.trim();
    const problem = !TENANT_PATTERN.test(tenant) ? "keys.badtenant" : scopes.length === 0 ? "keys.noscope" : null;
    replaceChildren(this.problem, problem && [icon("alert"), t(problem)]);
    if (problem) return;
    try {
      const key = await api.createKey({ name: this.name.value.trim(), tenant, scopes });
      this.showNewKey(key);
      this.name.value = "";
      await this.refresh();
    } catch (error) {
      replaceChildren(this.problem, icon("alert"), errorText(error));
    }
  }

  showNewKey({ key, name }) {
    const text = h("code", { class: "secret", tabindex: 0 }, key);
    const copy = button(t("compare.copy"), async () => {
      if (navigator.clipboard) await navigator.clipboard.writeText(key);
      else {
        getSelection().selectAllChildren(text);
        document.execCommand("copy");
      }
      showNotice(t("compare.copied"));
    }, { symbol: "copy" });
    const hide = button(t("keys.done"), () => replaceChildren(this.newKey), { kind: "quiet-button" });
    replaceChildren(this.newKey, h("section", { class: "panel fresh", role: "status" }, h("h2", {}, name ? t("keys.new.named", { name }) : t("keys.new")), h("p", {}, t("keys.once")), text, h("div", { class: "row" }, copy, hide)));
  }

  async refresh() {
    try {
      const keys = await api.listKeys();
      replaceChildren(this.list, h("ul", {}, keys.reverse().map((key) => this.createRow(key))));
    } catch (error) {
      replaceChildren(this.list, emptyState("alert", errorText(error), "", button(t("error.again"), () => this.refresh(), {})));
    }
  }

  createRow(key) {
    const isOwn = key.id === api.session.me.key_id;
    const endState = key.revoked_at ? "keys.revoked" : key.expires_at && key.expires_at * 1000 < Date.now() ? "keys.expired" : null;
    const lastUse = t("keys.used", { time: key.last_used_at ? formatTime(key.last_used_at) : t("keys.never") });
    return h(
      "li",
      { class: `row-card ${endState ? "ended" : ""}`, "data-key": key.id },
      h(
        "div",
        { class: "row-words" },
        h("h2", {}, h("span", {}, key.name || t("keys.unnamed")), isOwn && h("span", { class: "pill succeeded" }, t("keys.this")), endState && h("span", { class: "pill" }, t(endState))),
        h("p", { class: "facts" }, [key.tenant, joinList(key.scopes.split(" ").filter(Boolean).map((scope) => t(`keys.${scope}`))), t("keys.created", { time: formatTime(key.created_at) }), lastUse].join(" · ")),
      ),
      !endState && this.createRevokeButton(key),
    );
  }

  createRevokeButton(key) {
    const revoke = button(t("keys.revoke"), async () => {
      if (!revoke.classList.contains("sure")) {
        revoke.classList.add("sure");
        revoke.lastChild.textContent = t("keys.revoke.sure");
        revoke.addEventListener("blur", () => (revoke.classList.remove("sure"), (revoke.lastChild.textContent = t("keys.revoke"))), { once: true });
        return;
      }
      try {
        await api.revokeKey(key.id);
        await this.refresh();
      } catch (error) {
        showNotice(errorText(error), "bad");
      }
    }, { kind: "quiet-button", symbol: "trash" });
    return revoke;
  }
}
