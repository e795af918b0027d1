// All items of one album, or all loose or dismissed items, next to the other albums, on which they can be dropped.

import { count, fill, go, h } from "../dom.js";
import { drop } from "./albums.js";
import { Grid, Selection } from "./grid.js";
import { coverOf, draggable, droppable, itemTile, lock } from "./tiles.js";
import { items, same, titleOf } from "./desk.js";
import { why } from "./why.js";

const RAIL = 60;

export function itemsView(desk, { album: id = null, dismissed = false } = {}) {
  const place = id === null ? (dismissed ? "dismissed" : "loose") : `album-${id}`;
  const selection = new Selection(`${desk.pet}-${place}`);
  const grid = new Grid({
    label: id === null ? (dismissed ? "Dismissed items" : "Loose items") : "Items of the album",
    minWidth: matchMedia("(max-width: 40rem)").matches ? 96 : 128,
    gap: 8,
    heightOf: (width) => width + 26,
    keyOf: (item) => item,
    nameOf: (item) => item,
    selection,
    draw: (item) => itemTile(desk.pet, item),
    open: (item) => why(desk, item, { all: grid.items, open: (next) => ((grid.active = grid.items.indexOf(next)), grid.layout()) }),
    drag: (cell) => draggable(cell, { kind: "item", keyOf: (item) => item, selection, from: id }),
  });
  const heading = h("div", { class: "album-head" });
  const rail = h("aside", { class: "rail", "aria-label": "Other albums" });
  const find = h("input", { type: "search", name: "find-item", placeholder: "Find an item", "aria-label": "Find an item", oninput: () => update() });
  const empty = h("div", { class: "empty" });
  const element = h("div", { class: "with-rail" }, h("div", {}, heading, h("div", { class: "row tools" }, find, allButton(grid, selection)), empty, grid.element), rail);
  let railOf = null;

  function update() {
    const album = id === null ? null : desk.album(id);
    const all = id === null ? (dismissed ? desk.view.dismissed : desk.view.noise) : (album?.media_ids ?? []);
    const wanted = find.value.trim().toLowerCase();
    find.hidden = all.length < 12 && !wanted;
    selection.keep(all);
    fill(heading, head(desk, id, album, dismissed, all));
    empty.hidden = all.length > 0 && !(wanted && !grid.items.length);
    fill(empty, emptyState(id, album, dismissed));
    grid.show(wanted ? all.filter((item) => item.toLowerCase().includes(wanted)) : all);
    if (railOf !== desk.albums) drawRail(desk, rail, id, selection);
    railOf = desk.albums;
  }
  selection.addEventListener("change", () => grid.mark());

  return {
    element,
    update,
    grid,
    selection,
    focus: grid.element,
    destroy: () => grid.destroy(),
    album: () => (id === null ? null : desk.album(id)),
    chosen: () => (selection.size ? { media_ids: grid.items.length === selection.size ? [...grid.items] : [...selection.keys], ...(id !== null && { cluster_id: desk.album(id)?.cluster_id }) } : null),
  };
}

const allButton = (grid, selection) =>
  h("button", { type: "button", class: "quiet-button", onclick: () => (selection.size >= grid.items.length ? selection.clear() : grid.choose()) }, "Select all");

function head(desk, id, album, dismissed, all) {
  const back = h("a", { href: `#/pet/${desk.pet}`, class: "back", "aria-label": "Back to the albums" }, "←");
  if (id === null) {
    const [title, text] = dismissed
      ? ["Dismissed", "A user dismissed these items. They stay in no album until that is undone."]
      : ["Loose items", "Items that are not similar enough to any album. Drag them onto an album, or select some and place them."];
    const other = dismissed ? h("a", { href: `#/pet/${desk.pet}/loose` }, "Loose items") : desk.view.dismissed.length > 0 && h("a", { class: "whole", href: `#/pet/${desk.pet}/dismissed` }, `${count(desk.view.dismissed.length)} dismissed`);
    return [back, h("div", {}, h("h2", {}, title, " ", h("span", { class: "count" }, count(all.length))), h("p", { class: "quiet" }, text, other && [" ", other]))];
  }
  if (!album) return [back, h("h2", {}, `Album ${id}`)];
  const facts = [`cluster ${album.cluster_id}`, album.since !== undefined && `since revision ${album.since}`, album.threshold !== undefined && `arrivals need similarity ${album.threshold.toFixed(3)}`, album.merged_from.length > 0 && `merged from ${album.merged_from.join(", ")}`, album.split_from !== null && `split from ${album.split_from}`, album.other_names.length > 0 && `also named ${album.other_names.join(", ")}`];
  return [back, h("div", {}, h("h2", {}, titleOf(album), " ", h("span", { class: "count" }, count(album.size)), album.is_locked && lock(), album.is_hidden && h("span", { class: "badge" }, "hidden")), h("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")))];
}

function emptyState(id, album, dismissed) {
  if (id === null) return [h("h2", {}, dismissed ? "Nothing is dismissed" : "No loose items"), h("p", { class: "quiet" }, dismissed ? "" : "Every item is in an album.")];
  if (!album) return [h("h2", {}, "This album does not exist"), h("p", { class: "quiet" }, "It was merged, or it has ended. The history shows when.")];
  return [h("p", {}, "No item of this album has that name.")];
}

function drawRail(desk, rail, id, selection) {
  const own = id === null ? null : desk.album(id)?.cluster_id;
  const others = desk.albums.filter((album) => !same(album.cluster_id, own));
  fill(
    rail,
    h("h3", {}, "Albums"),
    others.slice(0, RAIL).map((album) => {
      const link = h("a", { class: "rail-album", href: `#/pet/${desk.pet}/album/${album.cluster_id}`, title: `Drop items here to place them in ${titleOf(album)}` }, coverOf(desk.pet, album, 44), h("span", {}, h("strong", {}, titleOf(album)), h("small", {}, items(album.size))));
      droppable(link, (dragged) => desk.may("place") && drop(desk, album, dragged) && selection.clear());
      return link;
    }),
    others.length > RAIL && h("a", { href: `#/pet/${desk.pet}` }, `${count(others.length - RAIL)} more`),
    others.length === 0 && h("p", { class: "quiet" }, "No other album."),
  );
}

export const openAlbum = (desk, album) => go(`#/pet/${desk.pet}/album/${album.cluster_id}`);
