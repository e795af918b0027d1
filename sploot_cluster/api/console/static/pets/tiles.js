// The cells of grids: an album with its cover, and an item with its picture. Items can be dropped on albums.

import { count, h } from "../dom.js";
import { picture } from "./pictures.js";
import { items, titleOf } from "./desk.js";

const COVERS = 4;
const WAYS = { core: "found by density", arrived: "assigned on arrival", absorbed: "absorbed, low confidence", corrected: "placed by a user" };

export const keyOfAlbum = (album) => String(album.cluster_id);
export const nameOfAlbum = (album) => `${titleOf(album)}, ${items(album.size)}`;

/** A cover: one to four pictures by which a user recognises an album. */
export function cover(pet, media, width) {
  const shown = media.slice(0, media.length < COVERS ? 1 : COVERS); // the first item represents the album
  return h("span", { class: `cover has-${shown.length}` }, shown.map((item) => picture(pet, item, shown.length > 1 ? width / 2 : width)));
}

/** The cover of an album: the item that represents it, and some others. */
export const coverOf = (pet, album, width) => cover(pet, [album.cover, ...album.media_ids.slice(0, COVERS).filter((item) => item !== album.cover)], width);

/** A thin bar that shows how the members of an album came into it. */
function origins(album) {
  const parts = Object.keys(WAYS).filter((way) => album.origins?.[way]);
  if (!parts.length) return h("span", { class: "origins" });
  return h(
    "span",
    { class: "origins", title: parts.map((way) => `${count(album.origins[way])} ${WAYS[way]}`).join(", ") },
    parts.map((way) => {
      const part = h("span", { class: `is-${way}` });
      part.style.flexGrow = album.origins[way];
      return part;
    }),
  );
}

export const lock = () => h("span", { class: "lock", role: "img", "aria-label": "locked", title: "Locked: reclusters do not change which items it has" });

export function albumTile(pet, album) {
  return h(
    "span",
    { class: "album" },
    coverOf(pet, album, 240),
    h("span", { class: "album-name" }, h("strong", {}, titleOf(album)), album.is_locked && lock(), h("span", { class: "album-size" }, count(album.size))),
    origins(album),
  );
}

export const itemTile = (pet, item) => h("span", { class: "item" }, picture(pet, item, 160), h("span", { class: "item-name" }, item));

/** Make a cell draggable; if it is selected, all other selected cells move with it. */
export function draggable(cell, { kind, keyOf, selection, from }) {
  cell.draggable = true;
  cell.addEventListener("dragstart", (event) => {
    const key = keyOf(cell.item);
    const keys = selection.has(key) ? [...selection.keys] : [key];
    event.dataTransfer.setData("application/x-sploot", JSON.stringify({ kind, keys, from: from === null ? null : String(from) }));
    event.dataTransfer.effectAllowed = "move";
    const ghost = h("div", { class: "drag-ghost" }, `${count(keys.length)} ${keys.length === 1 ? kind : `${kind}s`}`);
    document.body.append(ghost);
    event.dataTransfer.setDragImage(ghost, -12, -8);
    setTimeout(() => ghost.remove());
  });
}

/** Make an element a drop target; `drop` is called with what was dragged. */
export function droppable(element, drop) {
  const isOurs = (event) => event.dataTransfer.types.includes("application/x-sploot");
  let depth = 0;
  element.addEventListener("dragenter", (event) => isOurs(event) && (depth++, element.classList.add("is-target")));
  element.addEventListener("dragleave", (event) => isOurs(event) && --depth <= 0 && ((depth = 0), element.classList.remove("is-target")));
  element.addEventListener("dragover", (event) => isOurs(event) && (event.preventDefault(), (event.dataTransfer.dropEffect = "move")));
  element.addEventListener("drop", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    depth = 0;
    element.classList.remove("is-target");
    drop(JSON.parse(event.dataTransfer.getData("application/x-sploot")));
  });
}
