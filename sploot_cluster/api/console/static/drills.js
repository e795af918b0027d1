// What changes a queue: first the plan, word by word, then a yes, then exactly that.

import { post } from "./api.js";
import { ask, count, h, notice } from "./dom.js";

/** Plan, show, ask, apply. `cli` is the same on the command line. */
export async function drill(queue, action, body, { title, cli, danger = false, again }) {
  try {
    const plan = await post(`queues/${encodeURIComponent(queue)}/${action}`, body);
    const said = await ask({
      title,
      danger,
      action: plan.entries.length ? `Yes, ${count(plan.entries.length)} ${plan.entries.length === 1 ? "entry" : "entries"}` : "Yes",
      cli: `${cli} --yes`,
      body: [
        h("p", {}, plan.effect),
        plan.warnings.map((warning) => h("p", { class: "banner is-warning" }, warning)),
        h("p", { class: "quiet" }, "In Redis's words:"),
        h("pre", {}, plan.commands.join("\n")),
        h("label", { class: "row" }, "Why, for the audit: ", h("input", { name: "note", maxlength: 256, placeholder: "a ticket, an incident" })),
      ],
    });
    if (!said) return;
    const done = await post(`queues/plans/${encodeURIComponent(plan.plan_id)}/apply`, { note: String(said.get("note") ?? "") });
    notice(done.because, { kind: done.is_complete ? "good" : "bad", stay: !done.is_complete });
    again();
  } catch (error) {
    notice(error.message, { kind: "bad", stay: true });
  }
}
