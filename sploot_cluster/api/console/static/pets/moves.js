// The difference between two states of a pet, as pictures: which items move from which album to which.

import { count, h } from "../dom.js";
import { picture } from "./pictures.js";
import { items, titleOf } from "./desk.js";

const SHOWN = 12;

/** Return the moves, grouped by source and destination, the largest group first. */
export function movesView(desk, diff) {
  const name = (id) => {
    if (id === null) return "loose";
    const album = desk.album(id);
    return album ? titleOf(album) : `Album ${id}`;
  };
  const groups = new Map();
  for (const move of diff.moved) {
    const key = `${move.from} ${move.to}`;
    if (!groups.has(key)) groups.set(key, { from: move.from, to: move.to, media: [] });
    groups.get(key).media.push(move.media_id);
  }
  const sorted = [...groups.values()].sort((a, b) => b.media.length - a.media.length);
  const facts = [
    ["stay", diff.n_same],
    ["move", diff.n_moved],
    ["find an album", diff.n_from_noise],
    ["become loose", diff.n_new_noise],
    ["new albums", [...diff.new_ids].length],
    ["albums that end", Object.keys(diff.merged).length],
  ].filter(([, n], at) => n || at < 2);
  return [
    h("ul", { class: "figures" }, facts.map(([text, n]) => h("li", {}, h("strong", {}, count(n)), " ", text))),
    !sorted.length && h("p", { class: "quiet" }, "No item is in another album."),
    sorted.map(({ from, to, media }) =>
      h(
        "section",
        { class: "move" },
        h("h3", {}, name(from), h("span", { class: "arrow" }, " → "), name(to), " ", h("span", { class: "count" }, count(media.length))),
        h("div", { class: "strip-of-pictures" }, media.slice(0, SHOWN).map((item) => h("span", { title: item }, picture(desk.pet, item, 72))), media.length > SHOWN && h("span", { class: "more" }, `+${count(media.length - SHOWN)}`)),
      ),
    ),
    diff.moved.length < diff.n_moved + diff.n_from_noise + diff.n_new_noise && diff.moved.length >= 1000 && h("p", { class: "quiet" }, `The first ${items(diff.moved.length)} are shown.`),
  ];
}
