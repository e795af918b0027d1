// All albums of a pet, and its loose items as one more album.

import { count, fill, go, h } from "../dom.js";
import { Grid, Selection } from "./grid.js";
import { albumTile, cover, draggable, droppable, keyOfAlbum, nameOfAlbum } from "./tiles.js";
import { same, titleOf } from "./desk.js";

export function albumsView(desk) {
  const selection = new Selection(`${desk.pet}-albums`);
  const filter = h("input", { type: "search", name: "find-album", placeholder: "Find an album", "aria-label": "Find an album", oninput: () => update() });
  let showsHidden = false;
  const hiddenButton = h("button", { type: "button", class: "quiet-button", onclick: () => ((showsHidden = !showsHidden), update()) });
  const loose = h("a", { class: "loose-link", href: `#/pet/${desk.pet}/loose` });
  const grid = new Grid({
    label: "Albums",
    minWidth: 168,
    heightOf: (width) => width + 48,
    keyOf: keyOfAlbum,
    nameOf: nameOfAlbum,
    selection,
    draw: (album) => albumTile(desk.pet, album),
    open: (album) => go(`#/pet/${desk.pet}/album/${album.cluster_id}`),
    drag: (cell) => {
      draggable(cell, { kind: "album", keyOf: keyOfAlbum, selection, from: null });
      droppable(cell, (dragged) => desk.may("merge") && drop(desk, cell.item, dragged) && selection.clear());
    },
  });
  const empty = h("div", { class: "empty" });
  const element = h("div", {}, h("div", { class: "row tools" }, filter, hiddenButton, h("span", { class: "spring" }), loose), empty, grid.element);

  function update() {
    const wanted = filter.value.trim().toLowerCase();
    const all = showsHidden ? [...desk.albums, ...desk.hidden] : desk.albums;
    const found = wanted ? all.filter((album) => titleOf(album).toLowerCase().includes(wanted) || String(album.cluster_id) === wanted) : all;
    if (selection.size) selection.keep(desk.view.clusters.map(keyOfAlbum));
    filter.hidden = desk.view.clusters.length < 8 && !wanted;
    hiddenButton.hidden = !desk.hidden.length;
    hiddenButton.textContent = showsHidden ? "Leave out hidden albums" : `Show ${count(desk.hidden.length)} hidden`;
    loose.hidden = !desk.view.noise.length;
    loose.replaceChildren(cover(desk.pet, desk.view.noise.slice(0, 1), 40), h("span", {}, `${count(desk.view.noise.length)} loose`));
    empty.hidden = found.length > 0;
    fill(empty, emptyState(desk, wanted));
    grid.show(found);
  }
  const onSelect = () => grid.mark();
  selection.addEventListener("change", onSelect);

  return { element, update, grid, selection, focus: grid.element, destroy: () => grid.destroy(), chosen: () => (selection.size ? { cluster_ids: desk.view.clusters.filter((album) => selection.has(keyOfAlbum(album))).map((album) => album.cluster_id) } : null) };
}

function emptyState(desk, wanted) {
  if (wanted) return [h("p", {}, `No album of this pet is called “${wanted}”.`)];
  if (!desk.view.n_media) return [h("h2", {}, "This pet has no items"), h("p", { class: "quiet" }, "Check the id, or send items: sploot-cluster ingest.")];
  return [h("h2", {}, "No albums yet"), h("p", { class: "quiet" }, `All ${count(desk.view.n_media)} items are loose. Recluster to group them.`)];
}

/** Handle albums or items that were dropped on an album. */
export function drop(desk, target, { kind, keys, from }) {
  if (kind === "album") {
    const cluster_ids = desk.view.clusters.map((album) => album.cluster_id).filter((id) => keys.includes(String(id)) || same(id, target.cluster_id));
    if (cluster_ids.length < 2) return false;
    desk.act("merge", { cluster_ids, into: target.cluster_id }, { what: `Merge ${cluster_ids.length} albums into ${titleOf(target)}` });
  } else {
    if (from !== null && same(from, target.cluster_id)) return false;
    desk.act("place", { media_ids: keys, into: target.cluster_id }, { what: `Place ${count(keys.length)} in ${titleOf(target)}` });
  }
  return true;
}
