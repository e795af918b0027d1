// DOM helpers. There is no template language: text from producers, such as the name of an item, always stays text.

import { holdFocus, remember } from "./redraw.js";

/** Create an element. Props that begin with `on` add listeners; other props set attributes, except false and null ones. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "checked" || name === "disabled" || name === "value" || name === "open") {
      element[name] = value;
      remember(element, name, value);
    }
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set the title of the browser's window or tab. */
export const retitle = (text) => (document.title = `${text} · sploot-cluster`);

/** Replace the contents of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Create a table whose rows are lists of cells. On a phone each row becomes a card that names the column of each cell, unless
 *  the table is `narrow`. The ARIA roles keep it a table for screen readers. */
export function table(heads, rows, { empty, caption, narrow = false } = {}) {
  if (!rows.length && empty) return h("p", { class: "none" }, empty);
  const names = heads.map((head) => head.text ?? head);
  const cellOf = (content, at) => {
    const cell = content instanceof HTMLTableCellElement ? content : h("td", {}, content);
    cell.setAttribute("role", "cell");
    if (names[at] && cell.colSpan === 1) cell.dataset.head = names[at];
    return cell;
  };
  return h(
    "div",
    { class: narrow ? "scroll" : "scroll cards" },
    h(
      "table",
      { role: "table" },
      caption && h("caption", {}, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map((head, at) => h("th", { scope: "col", role: "columnheader", class: head.class }, names[at])))),
      h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row" }, row.map(cellOf)))),
    ),
  );
}

export const number = (text, level) => h("td", { class: `number ${level ? `is-${level}` : ""}` }, level ? h("span", { class: "level" }, text) : text);

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  const s = ms / 1000;
  if (s < 120) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} d`;
}

export const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));

export function when(iso) {
  if (!iso) return "–";
  const at = new Date(iso);
  return h("time", { datetime: iso, title: at.toLocaleString("sv-SE", { timeZoneName: "short" }) }, `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`);
}

/** Return the part of a consumer's name, host:pid:birth:random, that users need. */
export const shortName = (name) => (name.split(":").length === 4 ? name.split(":").slice(0, 2).join(":") : name);

/** Go to a page of the console, or load it again if it is shown already. */
export function go(address) {
  const before = location.href;
  location.hash = address;
  if (location.href === before) dispatchEvent(new Event("hashchange"));
}

/** Show a command with a button that copies it. */
export function command(text) {
  // a line must not end in the middle of --yes
  const code = h("code", {}, text.split(/(\s+)/).map((part, at) => (at % 2 ? part : h("span", { class: "word" }, part))));
  const button = h("button", { type: "button", class: "copy", title: "Copy", onclick: () => copy(code, button) }, "copy");
  return h("div", { class: "command" }, code, button);
}

async function copy(code, button) {
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // browsers offer no clipboard over plain http from another machine, or without permission
    getSelection().selectAllChildren(code);
    isCopied = document.execCommand("copy");
  }
  button.textContent = isCopied ? "copied" : "press Ctrl+C";
  setTimeout(() => (button.textContent = "copy"), 1500);
}

/** Show a sentence. The sploot-cluster command with which it ends, if any, can be copied. */
export function advice(text) {
  const at = text?.search(/(?<=[;:] )sploot-cluster /) ?? -1;
  return at < 0 ? text : [text.slice(0, at - 2), command(text.slice(at))];
}

/** Build a sploot-cluster command from its words, quoted for a shell. */
export const shell = (...words) =>
  ["sploot-cluster", ...words.map(String)].map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");

const MOST_NOTICES = 4;
let notices = 0;
export function notice(text, { kind = "info", stay = false } = {}) {
  const id = `notice-${++notices}`;
  const shown = document.getElementById("notices").children;
  while (shown.length >= MOST_NOTICES) shown[0].remove();
  const element = h("div", { id, class: `notice is-${kind}`, role: kind === "bad" ? "alert" : "status" }, h("span", {}, text), h("button", { type: "button", title: "Close", onclick: () => element.remove() }, "×"));
  document.getElementById("notices").append(element);
  if (!stay) setTimeout(() => element.remove(), 8000);
  return element;
}

/** Ask for confirmation before a change. Resolves to the values of the form. If the user cancels, shows a notice and
 *  resolves to null.
 *
 *  `cli` (optional) is the command line that does the same as the button: text, or a function of the form's values that
 *  returns labelled commands. Enter in a field confirms, except for a `danger` action: that cannot be undone, so its
 *  button must be pressed. */
export async function ask({ title, body, action, danger = false, cli }) {
  const dialog = document.getElementById("dialog");
  const hint = h("p", { class: "quiet", role: "status" });
  const yes = h("button", { type: danger ? "button" : "submit", class: danger ? "danger" : "main", onclick: danger ? () => dialog.close("yes") : null }, action);
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const commands = h("div", {});
  const form = h("form", {}, h("h2", {}, title), body, commands, hint, h("menu", {}, cancel, yes));
  const showCommands = () => cli && commands.replaceChildren(...labelled(cli, new FormData(form)));
  for (const event of ["input", "change"]) form.addEventListener(event, showCommands);
  // ignore the Enter key that opened the dialog while it is held down
  form.addEventListener("keydown", (event) => event.key === "Enter" && event.repeat && event.preventDefault());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (danger) hint.textContent = `Enter does not confirm this action. Press “${action}”.`;
    else dialog.close("yes");
  });
  showCommands();
  const answer = await shown(dialog, form, form.elements.note ?? form.querySelector("input[required], input[autofocus]") ?? (danger ? cancel : yes));
  if (answer === "yes") return new FormData(form);
  notice(`${title}: cancelled; nothing was changed.`);
  return null;
}

/** Show information in a dialog that only has a Close button. */
export function inform({ title, body, cli, wide = false }) {
  const dialog = document.getElementById("dialog");
  const close = h("button", { type: "button", class: "main", onclick: () => dialog.close() }, "Close");
  return shown(dialog, h("div", { class: wide ? "is-wide" : null }, h("h2", {}, title), body, cli ? labelled(cli) : null, h("menu", {}, close)), close);
}

function shown(dialog, content, first) {
  const giveBack = holdFocus();
  dialog.replaceChildren(content);
  dialog.returnValue = "";
  dialog.showModal();
  first.focus({ preventScroll: true });
  dialog.scrollTop = 0;
  return new Promise((resolve) => {
    dialog.onclose = () => {
      giveBack();
      resolve(dialog.returnValue);
    };
  });
}

const labelled = (cli, values) =>
  [typeof cli === "function" ? cli(values) : { "On the command line:": cli }]
    .flatMap(Object.entries)
    .flatMap(([label, text]) => [h("p", { class: "quiet" }, label), command(text)]);
