// Keys: make one, shown once; what there are and when they were last used; revoke.

import * as api from "./api.js";
import { button, empty, fill, h, icon, notice } from "./dom.js";
import { errorText, moment, t } from "./texts.js";

const SCOPES = ["run", "read", "admin"];
const TENANT = /^[A-Za-z0-9_-]{1,64}$/;

/** @returns {Promise<{title, view, leave}>} */
export async function keys() {
  const { me } = api.session;
  const head = h("header", { class: "head" }, h("h1", {}, t("keys.title")), h("p", { class: "lead" }, t("keys.words")));
  if (!api.session.can("admin")) {
    const words = t("keys.noadmin.words", { name: me.name || me.key_id, tenant: me.tenant, scopes: me.scopes.join(", ") });
    return { title: t("keys.title"), view: h("div", {}, head, empty("alert", t("keys.noadmin"), words)), leave() {} };
  }
  const view = new Keys(head);
  await view.refresh();
  return { title: t("keys.title"), view: view.view, leave() {} };
}

class Keys {
  constructor(head) {
    this.list = h("div", { class: "rows" });
    this.fresh = h("div", {});
    this.view = h("div", { class: "keys" }, head, this.form(), this.fresh, this.list);
  }

  form() {
    this.name = h("input", { id: "key-name", maxlength: 100, autocomplete: "off", placeholder: t("optional") });
    this.tenant = h("input", { id: "key-tenant", maxlength: 64, autocomplete: "off", set: { value: api.session.me.tenant } });
    this.scopes = SCOPES.map((scope) => h("input", { type: "checkbox", value: scope, set: { checked: scope !== "admin" } }));
    this.problem = h("p", { class: "problem", role: "alert" });
    const field = (input, words) => h("div", { class: "field" }, h("label", { for: input.id }, words), input);
    const scopes = h("fieldset", { class: "field" }, h("legend", {}, t("keys.scopes")), h("div", { class: "row" }, this.scopes.map((input) => h("label", { class: "check" }, input, h("span", {}, t(`keys.${input.value}`))))));
    const go = h("button", { class: "button primary", type: "submit" }, h("span", {}, t("keys.create")));
    return h("form", { class: "panel key-form", on: { submit: (event) => (event.preventDefault(), this.create()) } }, field(this.name, t("keys.name")), field(this.tenant, t("keys.tenant")), scopes, go, this.problem);
  }

  async create() {
    const scopes = this.scopes.filter((input) => input.checked).map((input) => input.value);
    const tenant = this.tenant.value.trim();
    const wrong = !TENANT.test(tenant) ? "keys.badtenant" : scopes.length === 0 ? "keys.noscope" : null;
    fill(this.problem, wrong && [icon("alert"), t(wrong)]);
    if (wrong) return;
    try {
      const made = await api.createKey({ name: this.name.value.trim(), tenant, scopes });
      this.show(made);
      this.name.value = "";
      await this.refresh();
    } catch (error) {
      fill(this.problem, icon("alert"), errorText(error));
    }
  }

  show({ key, name }) {
    const text = h("code", { class: "secret", tabindex: 0 }, key);
    const copy = button(t("compare.copy"), async () => {
      if (navigator.clipboard) await navigator.clipboard.writeText(key);
      else {
        getSelection().selectAllChildren(text);
        document.execCommand("copy");
      }
      notice(t("compare.copied"));
    }, { symbol: "copy" });
    const done = button(t("keys.done"), () => fill(this.fresh), { kind: "quiet-button" });
    fill(this.fresh, h("section", { class: "panel fresh", role: "status" }, h("h2", {}, name ? `${t("keys.new")}: ${name}` : t("keys.new")), h("p", {}, t("keys.once")), text, h("div", { class: "row" }, copy, done)));
  }

  async refresh() {
    try {
      const all = await api.keys();
      fill(this.list, h("ul", {}, all.reverse().map((key) => this.row(key))));
    } catch (error) {
      fill(this.list, empty("alert", errorText(error), "", button(t("error.again"), () => this.refresh(), {})));
    }
  }

  row(key) {
    const own = key.id === api.session.me.key_id;
    const ended = key.revoked_at ? "keys.revoked" : key.expires_at && key.expires_at * 1000 < Date.now() ? "keys.expired" : null;
    const used = `${t("keys.used")}: ${key.last_used_at ? moment(key.last_used_at) : t("keys.never")}`;
    return h(
      "li",
      { class: `row-card ${ended ? "ended" : ""}`, "data-key": key.id },
      h(
        "div",
        { class: "row-words" },
        h("h2", {}, h("span", {}, key.name || t("keys.unnamed")), own && h("span", { class: "pill succeeded" }, t("keys.this")), ended && h("span", { class: "pill" }, t(ended))),
        h("p", { class: "facts" }, [key.tenant, key.scopes.split(" ").filter(Boolean).map((scope) => t(`keys.${scope}`)).join(", "), `${t("keys.created")}: ${moment(key.created_at)}`, used].join(" · ")),
      ),
      !ended && this.revoker(key),
    );
  }

  revoker(key) {
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
        notice(errorText(error), "bad");
      }
    }, { kind: "quiet-button", symbol: "bin" });
    return revoke;
  }
}
