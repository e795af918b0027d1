// Charts of values over time, drawn by uPlot (uPlot.LICENSE), which is loaded with the first chart.

import { h } from "./dom.js";

const HEIGHT = 170;
const COLOURS = ["--link", "--corrected", "--good", "--quiet", "--critical"];

const root = document.documentElement.dataset.root;
let loading = null;

/** Load uPlot, once. */
export function charts() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: `${root}/console/uPlot.min.css` }));
    document.head.append(h("script", { src: `${root}/console/uPlot.min.js`, onload: resolve, onerror: () => reject(new Error("uPlot could not be loaded; reload the page")) }));
  });
  return loading;
}

/** Draw a chart. `series` is a list of [label, values], `limits` a list of [value, "warning" or "critical"], and
 *  `marks` a list of event times. The charts of a `group` share a cursor: all show their values at the same time. */
export function chart({ title, times, series, unit = "", limits = [], marks = [], group = "charts" }) {
  const place = h("div", { class: "plot" });
  const latest = series.map(([label, values]) => `${label} ${shown(last(values), unit)}`).join(", ");
  // this key lets a redraw recognise a chart whose values have not changed, and keep it
  const keep = JSON.stringify([title, times.at(-1), series.map(([label, values]) => [label, last(values), values.reduce((sum, value) => sum + (value ?? 0), 0)]), marks.length]);
  const figure = h("figure", { class: "chart", role: "img", "aria-label": `${title}: ${latest}`, data: { keep } }, h("figcaption", {}, title), place);
  // the width is known only after the figure is in the page
  const observer = new ResizeObserver(() => {
    if (!place.isConnected) return observer.disconnect();
    if (!place.plot) place.plot = new window.uPlot(options({ series, unit, limits, marks, group }, place), [times, ...series.map(([, values]) => values)], place);
    else if (place.plot.width !== place.clientWidth) place.plot.setSize({ width: place.clientWidth, height: HEIGHT });
  });
  observer.observe(place);
  return figure;
}

function options({ series, unit, limits, marks, group }, place) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return {
    width: place.clientWidth,
    height: HEIGHT,
    // times are in UTC, as everywhere in the console
    tzDate: (seconds) => window.uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
    cursor: { sync: { key: group }, drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, ...limits.filter(([value]) => value < 3 * (high ?? 0)).map(([value]) => value), 1) * 1.05] } },
    axes: [{ ...axis, size: 36, values: (_, times) => times.map((time) => new Date(time * 1e3).toISOString().slice(11, 16)) }, { ...axis, size: 60, values: (_, values) => values.map((value) => shown(value, unit)) }],
    series: [
      { value: (plot, seconds) => `${new Date((seconds ?? last(plot.data[0])) * 1e3).toISOString().slice(11, 16)} UTC` },
      ...series.map(([label], at) => ({ label, stroke: colour(COLOURS[at % COLOURS.length]), width: 1.5, spanGaps: false, points: { show: false }, value: (plot, value, series, index) => shown(index === null ? last(plot.data[series]) : value, unit) })),
    ],
    hooks: { draw: [(plot) => limits.forEach(([value, level]) => line(plot, colour(`--${level}`), { y: value })), (plot) => marks.forEach((time) => line(plot, colour("--quiet"), { x: time }))] },
  };
}

/** Draw a dashed line across the plot, at a value or a time. */
function line(plot, colour, { x = null, y = null }) {
  const { ctx, bbox } = plot;
  const at = x === null ? plot.valToPos(y, "y", true) : plot.valToPos(x, "x", true);
  if (x === null ? at < bbox.top : at < bbox.left || at > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.setLineDash([6, 4]);
  ctx.beginPath();
  ctx.moveTo(x === null ? bbox.left : at, x === null ? at : bbox.top);
  ctx.lineTo(x === null ? bbox.left + bbox.width : at, x === null ? at : bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

const last = (values) => values.findLast((value) => value !== null && value !== undefined) ?? null;

function shown(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "s" && value > 0 && value < 1) return `${Number((1000 * value).toPrecision(2))} ms`;
  const text = value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  return unit ? `${text} ${unit}` : text;
}
