// A map of a pet: every item is a point near similar items. Colours show albums; corrections do not move points.
//
// The map is one list box for keyboards and screen readers: arrow keys go from point to point. Its one option, inside the
// canvas, is the item that has been reached.

import { get } from "../api.js";
import { count, h } from "../dom.js";
import { items, titleOf } from "./desk.js";
import { picture } from "./pictures.js";
import { why } from "./why.js";

const MARGIN = 18;
const REACH_PX = 14;
const ASIDE = 2; // a point to the side of an arrow's direction counts as this many times farther

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

let options = 0;

/** Colours of albums by rank: distinct hues, then they repeat. */
const hue = (rank) => (rank * 137.5) % 360;

export function mapView(desk) {
  const canvas = h("canvas", { class: "map", role: "listbox", tabindex: "0", "aria-label": "Map of the items. Arrow keys go to the nearest item, Enter shows why it is there." });
  const tip = h("div", { class: "map-tip", hidden: true, "aria-hidden": "true" });
  const legend = h("div", { class: "legend" });
  const note = h("p", { class: "quiet" });
  const stage = h("div", { class: "stage" }, canvas, tip);
  const element = h("div", {}, stage, legend, note);
  let points = null;
  let places = []; // the position of each point on the canvas, and the rank of its album
  let ranks = [];
  let seen = null;
  let only = null;
  let active = null; // the point that was reached with the keyboard

  async function load() {
    note.textContent = "Computing the places of the items…";
    points = await get(`pets/${desk.pet}/map?limit=10000`);
    update();
    if (document.activeElement === canvas) enter();
  }

  /** Compute the positions of the points, and their albums if the pet has changed. Only this visits all items. */
  function measure() {
    const size = Math.min(canvas.clientWidth, canvas.clientHeight) - 2 * MARGIN;
    const [left, bottom] = [(canvas.clientWidth - size) / 2, canvas.clientHeight - MARGIN];
    // the longer axis fills the height; a wide screen may show more to the sides
    places = points.media_ids.map((_, at) => [left + points.x[at] * size, bottom - points.y[at] * size]);
    if (seen === desk.view) return;
    seen = desk.view;
    ranks = new Array(points.media_ids.length);
    const placeOf = new Map(points.media_ids.map((item, at) => [item, at]));
    seen.clusters.forEach(({ media_ids }, rank) => {
      for (const item of media_ids) if (placeOf.has(item)) ranks[placeOf.get(item)] = rank;
    });
  }

  function update() {
    if (!points) return;
    measure();
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const ink = canvas.getContext("2d");
    ink.scale(ratio, ratio);
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const radius = points.media_ids.length > 3000 ? 2 : 4;
    const draw = (at, colour) => {
      const [x, y] = places[at];
      ink.fillStyle = colour;
      ink.beginPath();
      ink.arc(x, y, radius, 0, 2 * Math.PI);
      ink.fill();
    };
    const order = places.map((_, at) => [ranks[at], at]).sort(([a], [b]) => (b ?? Infinity) - (a ?? Infinity));
    for (const [rank, at] of order) {
      const isFaint = only !== null && rank !== only;
      const alpha = isFaint ? 0.08 : rank === undefined ? 0.45 : 0.75;
      draw(at, rank === undefined ? `rgb(128 128 128 / ${alpha})` : `hsl(${hue(rank)} 65% ${isDark ? 62 : 46}% / ${alpha})`);
    }
    if (reached() !== null) {
      ink.strokeStyle = getComputedStyle(canvas).color;
      ink.lineWidth = 2;
      ink.beginPath();
      ink.arc(...places[active], radius + 4, 0, 2 * Math.PI);
      ink.stroke();
    }
    drawLegend();
    note.textContent = points.media_ids.length < points.n_media ? `${count(points.media_ids.length)} of ${count(points.n_media)} items, evenly sampled. Axes: the two directions in which the items differ most.` : `${items(points.n_media)}. Axes: the two directions in which the items differ most; corrections move no point.`;
  }

  function drawLegend() {
    legend.replaceChildren(
      ...desk.view.clusters.slice(0, 24).map((album, rank) => {
        const dot = h("span", { class: "dot" });
        dot.style.setProperty("--hue", hue(rank));
        return h("button", { type: "button", class: "legend-album", "aria-pressed": only === rank ? "true" : "false", onclick: () => ((only = only === rank ? null : rank), update()) }, dot, titleOf(album), " ", h("span", { class: "quiet" }, count(album.size)));
      }),
      h("span", { class: "legend-album" }, h("span", { class: "dot is-loose" }), "loose ", h("span", { class: "quiet" }, count(desk.view.noise.length))),
    );
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    for (let at = 0; at < places.length; at++) {
      const [px, py] = places[at];
      const distance = Math.hypot(px - x, py - y);
      if (distance < (best?.distance ?? REACH_PX)) best = { at, distance };
    }
    return best;
  }

  /** Show the picture and the album of a point next to it, or of none. */
  function point(at) {
    tip.hidden = at === null;
    if (at === null) return;
    const [x, y] = places[at];
    tip.style.left = `${Math.min(x + 14, canvas.clientWidth - 150)}px`;
    tip.style.top = `${Math.max(0, y - 90)}px`;
    if (tip.item === points.media_ids[at]) return;
    tip.item = points.media_ids[at];
    tip.replaceChildren(picture(desk.pet, tip.item, 96), h("strong", {}, albumOf(at)), h("small", {}, tip.item));
  }

  const albumOf = (at) => (seen.clusters[ranks[at]] ? titleOf(seen.clusters[ranks[at]]) : "loose");

  /** The active point while the map has the focus, otherwise null. */
  const reached = () => (document.activeElement === canvas ? active : null);

  /** Make a point the active one. The option is a new element each time, so that screen readers announce it. */
  function go(at) {
    active = at;
    const option = h("div", { id: `map-item-${++options}`, role: "option", "aria-selected": "true", "aria-posinset": at + 1, "aria-setsize": points.media_ids.length, "aria-label": `${points.media_ids[at]}, ${albumOf(at)}` });
    canvas.replaceChildren(option);
    canvas.setAttribute("aria-activedescendant", option.id);
    update();
    point(at);
  }

  /** Show the active point again, or begin in the middle of the map. */
  function enter() {
    if (!places.length) return;
    const [x, y] = [canvas.clientWidth / 2, canvas.clientHeight / 2];
    go(active ?? closest(([px, py]) => Math.hypot(px - x, py - y)));
  }

  /** Return the point with the smallest distance, of those that are not faint; null if there is none. */
  function closest(distanceOf) {
    let best = null;
    for (let at = 0; at < places.length; at++) {
      if (only !== null && ranks[at] !== only) continue;
      const distance = distanceOf(places[at], at);
      if (distance < (best?.distance ?? Infinity)) best = { at, distance };
    }
    return best?.at ?? null;
  }

  /** Return the nearest point in a direction. Points at the same place follow each other, rightwards and downwards. */
  function next([dx, dy]) {
    const [x, y] = places[active];
    return closest(([px, py], at) => {
      const along = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy + (py - y) * dx);
      if (along === 0 && aside === 0) return (at - active) * (dx + dy) > 0 ? Math.abs(at - active) * Number.EPSILON : Infinity;
      return along > 0 ? along + ASIDE * aside : Infinity;
    });
  }

  canvas.addEventListener("focus", () => points && enter());
  canvas.addEventListener("blur", () => points && (point(null), update()));
  canvas.addEventListener("keydown", (event) => {
    if (active === null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in DIRECTIONS) {
      event.preventDefault();
      go(next(DIRECTIONS[event.key]) ?? active);
    } else if (event.key === "Enter") {
      event.preventDefault();
      why(desk, points.media_ids[active]);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    canvas.style.cursor = found ? "pointer" : "default";
    point(found?.at ?? reached());
  });
  canvas.addEventListener("pointerleave", () => point(reached()));
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (!found) return;
    go(found.at);
    why(desk, points.media_ids[found.at]);
  });
  const observer = new ResizeObserver(() => update());
  observer.observe(canvas);

  return { element, focus: canvas, update, load, destroy: () => observer.disconnect() };
}
