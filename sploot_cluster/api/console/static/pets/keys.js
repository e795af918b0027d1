// The keyboard shortcuts of the pet pages, and the overview that lists them.

import { h, inform } from "../dom.js";

const SHEET = [
  ["Anywhere", [["?", "this list of keys"], ["F", "find an album or an item"], ["/", "search jobs, pets and errors"], ["Z", "undo the last correction"], ["Esc", "clear the selection; close"], ["1 – 5", "Review, Albums, Loose, Map, History"]]],
  ["In a grid", [["← → ↑ ↓", "move"], ["Shift + ← →", "select a range; Shift + click does the same"], ["Space", "select or deselect one"], ["A", "select all"], ["Enter", "open an album, or show why an item is here"]]],
  ["On the map", [["← → ↑ ↓", "go to the nearest item"], ["Enter", "show why it is here"]]],
  ["With a selection", [["M", "merge"], ["K", "keep apart"], ["R", "name; without a selection: the pet"], ["H", "hide, or U: show"], ["L", "lock, or unlock"], ["C", "make it the cover"], ["P", "place in an album"], ["S", "split off"], ["N", "not this album"], ["D", "dismiss"]]],
  ["In the review", [["S or →", "same"], ["D or ←", "different"], ["X", "not this pet"], ["L or Space", "later"], ["Z", "undo"]]],
];

export const VERB_KEYS = { merge: "m", keep_apart: "k", name: "r", hide: "h", show: "u", lock: "l", unlock: "l", cover: "c", place: "p", split: "s", exclude: "n", dismiss: "d" };

export const showKeys = () =>
  inform({
    title: "Keys",
    wide: true,
    body: h("div", { class: "keys" }, SHEET.map(([title, rows]) => h("section", {}, h("h3", {}, title), h("dl", {}, rows.map(([keys, what]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what)]))))),
  });

const isTyping = (element) => element.closest?.("input, textarea, select, [contenteditable]") && element.type !== "checkbox" && element.type !== "range";

/** Call `handle(key, event)` for keys that no field and no dialog handles, until the signal aborts. */
export function onKey(handle, signal) {
  addEventListener(
    "keydown",
    (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.getElementById("dialog").open) return;
      if (isTyping(event.target)) return void (event.key === "Escape" && event.target.blur());
      // these keys activate a focused button or link
      if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button, a, summary")) return;
      if (handle(event.key.length === 1 ? event.key.toLowerCase() : event.key, event)) event.preventDefault();
    },
    { signal },
  );
}
