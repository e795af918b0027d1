// A map of a pet: every item is a point near similar items. Colours show albums; corrections do not move points.

import { get } from "../api.js";
import { count, h } from "../dom.js";
import { items, titleOf } from "./desk.js";
import { picture } from "./pictures.js";
import { why } from "./why.js";

const MARGIN = 18;
const REACH_PX = 14;

/** Colours of albums by rank: distinct hues, then they repeat. */
const hue = (rank) => (rank * 137.5) % 360;

export function mapView(desk) {
  const canvas = h("canvas", { class: "map", role: "img", "aria-label": "Map of the items" });
  const tip = h("div", { class: "map-tip", hidden: true });
  const legend = h("div", { class: "legend" });
  const note = h("p", { class: "quiet" });
  const stage = h("div", { class: "stage" }, canvas, tip);
  const element = h("div", {}, stage, legend, note);
  let points = null;
  let places = []; // the position of each point on the canvas, and the rank of its album
  let ranks = [];
  let seen = null;
  let only = null;

  async function load() {
    note.textContent = "Computing the places of the items…";
    points = await get(`pets/${desk.pet}/map?limit=10000`);
    update();
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
    drawLegend();
    note.textContent = points.media_ids.length < points.n_media ? `${count(points.media_ids.length)} of ${count(points.n_media)} items, evenly chosen. Axes: the two directions in which the items differ most.` : `${items(points.n_media)}. Axes: the two directions in which the items differ most; corrections move no point.`;
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
      if (distance < (best?.distance ?? REACH_PX)) best = { at, distance, px, py };
    }
    return best;
  }

  canvas.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    canvas.style.cursor = found ? "pointer" : "default";
    tip.hidden = !found;
    if (!found || tip.item === points.media_ids[found.at]) return;
    tip.item = points.media_ids[found.at];
    const album = seen.clusters[ranks[found.at]];
    tip.replaceChildren(picture(desk.pet, tip.item, 96), h("strong", {}, album ? titleOf(album) : "loose"), h("small", {}, tip.item));
    tip.style.left = `${Math.min(found.px + 14, canvas.clientWidth - 150)}px`;
    tip.style.top = `${Math.max(0, found.py - 90)}px`;
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found) why(desk, points.media_ids[found.at]);
  });
  const observer = new ResizeObserver(() => update());
  observer.observe(canvas);

  return { element, update, load, destroy: () => observer.disconnect() };
}
