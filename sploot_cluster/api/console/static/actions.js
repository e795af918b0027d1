// What changes a queue: first the plan, word by word, then a yes, then exactly that.

import { post } from "./api.js";
import { ask, count, h, notice, shell } from "./dom.js";

/** Plan, show, ask, apply. `cli` holds the words of the same plan on the command line, without --note and --yes. */
export async function act(queue, action, body, { title, cli, danger = false, again }) {
  try {
    const plan = await post(`queues/${encodeURIComponent(queue)}/${action}`, body);
    const said = await ask({
      title,
      danger,
      action: plan.entries.length ? `Yes, ${count(plan.entries.length)} ${plan.entries.length === 1 ? "entry" : "entries"}` : "Yes",
      cli: (values) => commands(plan, cli, values.get("note").trim()),
      body: [
        h("p", {}, plan.effect),
        plan.warnings.map((warning) => h("p", { class: "banner is-warning" }, warning)),
        h("p", { class: "quiet" }, "In Redis's words:"),
        h("pre", {}, plan.commands.join("\n")),
        h("label", { class: "row" }, "Why, for the audit: ", h("input", { name: "note", maxlength: 256, placeholder: "a ticket, an incident" })),
      ],
    });
    if (!said) return;
    const done = await post(`queues/plans/${encodeURIComponent(plan.plan_id)}/apply`, { note: said.get("note").trim() });
    notice(done.reason, { kind: done.is_complete ? "good" : "bad", stay: !done.is_complete });
    again();
  } catch (error) {
    notice(error.message, { kind: "bad", stay: true });
  }
}

/** A plan about entries names them, and one that is made later may name others: both commands are shown. */
function commands(plan, words, note) {
  const yes = [...(note ? ["--note", note] : []), "--yes"];
  const afresh = shell(...words, ...yes);
  if (!plan.entries.length) return { "On the command line:": afresh };
  return {
    "On the command line, exactly this plan, within an hour:": shell("queue", "apply", plan.plan_id, ...yes),
    "A new plan, of what is there by then:": afresh,
  };
}
