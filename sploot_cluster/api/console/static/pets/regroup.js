// The preview of a recluster: pictures of the items that would move.

import { follow, get, post } from "../api.js";
import { count, fill, go, h, notice, shell, command } from "../dom.js";
import { movesView } from "./moves.js";
import { stageBar } from "../stage.js";

export function regroupView(desk) {
  const element = h("div", { class: "regroup" });
  let isGone = false;

  async function load() {
    fill(element, h("h2", {}, "Preview of a recluster"), h("p", { class: "working", role: "status" }, "Waiting for a worker…"));
    const status = element.querySelector(".working");
    try {
      const job = await post("clusters/recluster", { pet_id: desk.pet, preview: true }, { Prefer: "respond-async" });
      const ended = await follow(job, ({ reason, stage }) => fill(status, stage ? stageBar(stage) : `Computing: ${reason}`), { isWanted: () => !isGone });
      if (isGone) return;
      if (ended.state !== "succeeded") return failed(`No preview: ${ended.reason}`);
      show(await get(`pets/${desk.pet}/previews/${encodeURIComponent(ended.result.token)}`));
    } catch (error) {
      failed(error.message);
    }
  }

  const failed = (text) => !isGone && fill(element, h("h2", {}, "Preview of a recluster"), h("p", { class: "banner is-critical" }, text), h("p", {}, h("button", { type: "button", onclick: load }, "Try again")));

  function show(preview) {
    const { result, diff } = preview;
    const changes = diff.n_moved || diff.n_new_noise || diff.n_from_noise;
    const apply = h("button", { type: "button", class: changes ? "main" : null, onclick: () => accept(preview, apply) }, changes ? "Apply this preview" : "Apply, although nothing changes");
    fill(
      element,
      h("h2", {}, "Preview of a recluster"),
      h("p", {}, `${count(result.n_clusters)} albums and ${count(result.n_noise)} loose items. `, h("strong", { class: "kept" }, `${count(result.constraints_kept)} of ${count(result.constraints)} constraints from corrections kept.`)),
      h("div", { class: "row" }, apply, h("a", { class: "button", href: `#/pet/${desk.pet}` }, "Discard")),
      movesView(desk, diff),
      h("p", { class: "quiet" }, "On the command line, to apply exactly this preview:"),
      command(shell("recluster", desk.pet, "--apply", preview.token)),
    );
  }

  async function accept(preview, button) {
    button.disabled = true;
    try {
      await post("clusters/recluster", { pet_id: desk.pet, apply: preview.token });
      await desk.load();
      go(`#/pet/${desk.pet}`);
      notice("Reclustered exactly as previewed.", { kind: "good" });
    } catch (error) {
      failed(error.message);
    }
  }

  return { element, update: () => {}, load, destroy: () => (isGone = true) };
}
