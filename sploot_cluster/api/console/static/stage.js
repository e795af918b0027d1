// The stage of a long job: its number and what the job does in it.

import { h } from "./dom.js";

/** Draw a stage as a bar, in which the current stage is not done yet, and a sentence. */
export const stageBar = ({ number, total, activity }) => h("span", { class: "stage-bar" }, h("progress", { max: total, value: number - 0.5, "aria-label": "Progress" }), ` Stage ${number} of ${total}: ${activity}`);
