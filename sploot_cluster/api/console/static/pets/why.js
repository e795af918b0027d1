// One item, large, and the reason for its place: its neighbours, the second most similar album, and the difference.

import { get } from "../api.js";
import { h, inform, notice, shell, table, when } from "../dom.js";
import { picture } from "./pictures.js";
import { titleOf } from "./desk.js";

const ORIGINS = { core: "found by density", arrived: "assigned on arrival", absorbed: "absorbed, low confidence", corrected: "placed by a user", noise: "in no album", dismissed: "dismissed by a user", quarantined: "in quarantine: its vector has another model" };

/** Show the item in a dialog. `all` and `open` let the arrow keys go on to the next one. */
export async function why(desk, item, { all = [item], open = () => {} } = {}) {
  let found;
  try {
    found = await get(`pets/${desk.pet}/media/${encodeURIComponent(item)}/why`);
  } catch (error) {
    return notice(error.message, { kind: "bad" });
  }
  const at = all.indexOf(item);
  const step = (by) => {
    const next = all[at + by];
    if (next === undefined) return;
    document.getElementById("dialog").close();
    open(next);
    why(desk, next, { all, open });
  };
  const dialog = document.getElementById("dialog");
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      event.preventDefault();
      step(event.key === "ArrowRight" ? 1 : -1);
    }
  };
  await inform({
    title: item,
    body: h("div", { class: "why" }, h("div", { class: "why-picture" }, picture(desk.pet, item, 360)), h("div", {}, facts(desk, found), neighbours(desk, found), corrections(found))),
    cli: shell("why", desk.pet, item),
    wide: true,
  });
  dialog.onkeydown = null;
}

const nameOf = (desk, id) => {
  const album = desk.album(id);
  return album ? titleOf(album) : `cluster ${id}`;
};

function facts(desk, found) {
  const own = found.cluster_id;
  return [
    h("p", { class: "lead sentence" }, found.reason),
    h("p", { class: "quiet" }, own === null ? ORIGINS[found.origin] ?? found.origin : [`In ${nameOf(desk, own)}: `, ORIGINS[found.origin] ?? found.origin, ` (cluster ${own}, ${found.origin})`]),
    scale([found.similarity !== null && [own === null ? "nearest album" : nameOf(desk, own), found.similarity, true], found.second && [nameOf(desk, found.second.cluster_id), found.second.similarity, false, found.second.is_forbidden]].filter(Boolean), found.threshold ?? found.second?.threshold ?? null, found.margin),
  ];
}

/** Similarities on one scale, with the threshold as a line. */
function scale(rows, threshold, margin) {
  if (!rows.length) return null;
  const values = rows.map(([, value]) => value).concat(threshold ?? []);
  const low = Math.min(...values) - 0.05;
  const high = Math.max(1, ...values);
  const place = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const bars = rows.map(([name, value, isOwn, isForbidden]) => {
    const bar = h("span", { class: `meter ${isOwn ? "is-own" : ""}` });
    bar.style.width = place(value);
    const track = h("span", { class: "track" }, bar);
    if (threshold !== null) {
      const line = h("span", { class: "threshold", title: `threshold ${threshold.toFixed(3)}` });
      line.style.left = place(threshold);
      track.append(line);
    }
    return h("div", { class: "scale-row" }, h("span", {}, name, isForbidden && h("small", {}, " kept apart by a correction")), track, h("span", { class: "number" }, value.toFixed(3)));
  });
  return h("div", { class: "scale" }, bars, h("p", { class: "quiet" }, [threshold !== null && `The line is the threshold for arrivals, ${threshold.toFixed(3)}.`, margin !== null && margin !== undefined && `Margin to the next album: ${margin.toFixed(3)}.`].filter(Boolean).join(" ")));
}

function neighbours(desk, found) {
  if (!found.nearest.length) return h("p", { class: "quiet" }, "No similar items.");
  return [
    h("h3", {}, "Nearest neighbours"),
    h("ul", { class: "neighbours" }, found.nearest.map((near) => h("li", {}, picture(desk.pet, near.media_id, 96), h("span", { class: "item-name" }, near.media_id), h("small", {}, h("strong", {}, near.similarity.toFixed(3)), h("br"), nameOf(desk, near.cluster_id))))),
  ];
}

const corrections = (found) =>
  found.corrections.length > 0 && [h("h3", {}, "Corrections that affect it"), table(["revision", "correction", "by", "when"], found.corrections.map((one) => [one.revision, `${one.kind}: ${one.demand}`, one.by, when(one.at)]))];
