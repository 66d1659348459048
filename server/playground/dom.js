// Helpers that create elements, and the icons.

/**
 * Create an element. Attributes: `on` has listeners, `set` properties, `style` custom properties; false and null
 * are skipped. Children: nodes, strings, lists of them; null and false are skipped.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "set") Object.assign(element, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...flattenChildren(children));
  return element;
}

/** Replace the children of an element. */
export function replaceChildren(element, ...children) {
  element.replaceChildren(...flattenChildren(children));
  return element;
}

function flattenChildren(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined);
}

const NOTICE_MS = 6000;

const PATHS = {
  video: "M4 5h16v14H4zM4 9.5h16M4 14.5h16M8.5 5v4.5M8.5 14.5V19M15.5 5v4.5M15.5 14.5V19",
  face: "M12 3a8 9 0 0 0-8 9 8 9 0 0 0 16 0 8 9 0 0 0-8-9zM9 10v.5M15 10v.5M9 15.2c1.8 1.4 4.2 1.4 6 0",
  audio: "M4 11v2M8 8v8M12 5v14M16 8v8M20 11v2",
  mic: "M12 3.5a2.5 2.5 0 0 0-2.5 2.5v5a2.5 2.5 0 0 0 5 0V6A2.5 2.5 0 0 0 12 3.5zM6.5 11a5.5 5.5 0 0 0 11 0M12 16.5V20",
  camera: "M3.5 7.5h11v9h-11zM14.5 11l6-3v8l-6-3",
  close: "M6 6l12 12M18 6L6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  alert: "M12 4L3 19.5h18zM12 10v4M12 16.8v.2",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M5 19.5h14",
  copy: "M8.5 8.5h11v11h-11zM15.5 8.5v-4h-11v11h4",
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M8.5 5.5v13M15.5 5.5v13",
  repeat: "M19 12a7 7 0 1 1-2.2-5.1M19.5 4v4h-4",
  trash: "M5 7.5h14M9.5 7.5V5h5v2.5M7 7.5l.8 12h8.4l.8-12",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  arrow: "M5 12h14M13 6l6 6-6 6",
  upload: "M12 15.5v-11M7.5 9L12 4.5 16.5 9M5 19.5h14",
  people: "M8 5a4 4.6 0 1 0 0 9.2A4 4.6 0 0 0 8 5zM16.5 9.5a3.6 4.2 0 1 0 0 8.4 3.6 4.2 0 0 0 0-8.4M6.5 11.4c.9.7 2.1.7 3 0M15.2 15c.8.6 1.8.6 2.6 0",
};

/** Create an icon, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Create a button with an optional icon before its label. */
export function button(label, listener, { kind = "", symbol = null, ...attributes } = {}) {
  return h("button", { type: "button", class: `button ${kind}`, on: { click: listener }, ...attributes }, symbol && icon(symbol), h("span", {}, label));
}

/** Show a message at the edge of the page for a while. */
export function showNotice(text, kind = "") {
  const box = h("p", { class: `notice ${kind}` }, icon(kind === "bad" ? "alert" : "check"), text);
  document.getElementById("notices").append(box);
  setTimeout(() => box.remove(), NOTICE_MS);
}

/** Create the placeholder of a view that has nothing to show. */
export function emptyState(symbol, title, text, ...more) {
  return h("div", { class: "empty" }, h("div", { class: "empty-mark" }, icon(symbol)), h("h2", {}, title), h("p", {}, text), ...more);
}
