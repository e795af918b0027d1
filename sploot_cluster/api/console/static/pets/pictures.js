// Pictures of items. The console's server configures their URL; without one, items are shown as a name on a colour.

import { h } from "../dom.js";

const TEMPLATE = document.documentElement.dataset.media ?? "";

/** The widths at which pictures are requested: only a few, so that few sizes of each picture are made and cached. */
const STEPS = [64, 128, 256, 512, 1024];

function addressOf(pet, item, width) {
  const wanted = width * Math.min(devicePixelRatio || 1, 2);
  const parts = { pet_id: pet, media_id: item, width: STEPS.find((step) => step >= wanted) ?? STEPS.at(-1) };
  return TEMPLATE.replace(/\{(pet_id|media_id|width)\}/g, (_, name) => encodeURIComponent(parts[name]));
}

/** The hue of an item, as an angle; always the same for the same item. */
function hueOf(item) {
  let hash = 0;
  for (const character of item) hash = (hash * 31 + character.codePointAt(0)) | 0;
  return ((hash % 360) + 360) % 360;
}

/** Return the picture of an item. Until it is loaded, and if it cannot be, a placeholder shows its name. */
export function picture(pet, item, width) {
  const frame = h("span", { class: "picture" }, h("span", { class: "picture-name" }, item));
  frame.style.setProperty("--hue", hueOf(item));
  if (!TEMPLATE) return frame;
  const image = h("img", {
    src: addressOf(pet, item, width),
    alt: "",
    loading: "lazy",
    decoding: "async",
    draggable: "false",
    onload: () => frame.classList.add("is-loaded"),
    onerror: () => image.remove(),
  });
  frame.append(image);
  return frame;
}
