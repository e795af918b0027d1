// Actions that change a queue: show the plan, ask for confirmation, then apply exactly that plan.

import { post } from "./api.js";
import { choice, options, wanted } from "./canary.js";
import { ask, count, go, h, notice, shell } from "./dom.js";

/** Action -> the action that reverses it. */
const INVERSES = { pause: "resume", resume: "pause" };

/** Return the action that reverses this one, or undefined. */
export const inverseOf = (action) => INVERSES[action];

/** Return a button that pauses or resumes a queue, whichever is possible. */
export function pauseButton(queue, again) {
  const action = queue.is_paused ? "resume" : "pause";
  return switchButton(queue.is_paused ? "Resume…" : "Pause…", queue.queue, action, again);
}

/** Return a button that plans to pause or resume a queue. */
export function switchButton(text, queue, action, again) {
  const title = `${action === "pause" ? "Pause" : "Resume"} ${queue}`;
  return h("button", { type: "button", onclick: () => act(queue, action, {}, { title, cli: ["queue", action, queue], again }) }, text);
}

/** Make a plan, show it, and apply it once confirmed. `cli` is the same action on the command line, without --note and --yes. */
export async function act(queue, action, body, { title, cli, danger = false, again }) {
  try {
    const plan = await post(`queues/${encodeURIComponent(queue)}/${action}`, body);
    const answers = await ask({
      title,
      danger,
      action: plan.entries.length ? `Yes, ${count(plan.entries.length)} ${plan.entries.length === 1 ? "entry" : "entries"}` : "Yes",
      cli: (values) => commands(plan, cli, [...options(values), ...noteOf(values.get("note").trim())]),
      body: [
        h("p", { class: "sentence" }, plan.effect),
        plan.warnings.map((warning) => h("p", { class: "banner is-warning" }, warning)),
        choice(plan),
        h("p", { class: "quiet" }, "Redis commands:"),
        h("pre", {}, plan.commands.join("\n")),
        h("label", { class: "row" }, "Reason, for the audit log: ", h("input", { name: "note", maxlength: 256, placeholder: "ticket or incident" })),
      ],
    });
    if (!answers) return;
    const note = answers.get("note").trim();
    const address = `queues/plans/${encodeURIComponent(plan.plan_id)}`;
    const careful = wanted(answers);
    if (careful) {
      await post(`${address}/canary`, { note, ...careful });
      notice("The canary runs: one dead letter first.", { kind: "good" });
      return go(`#/dead/${queue}`);
    }
    const done = await post(`${address}/apply`, { note });
    const shown = notice(done.reason, { kind: done.is_complete ? "good" : "bad", stay: !done.is_complete });
    const inverse = done.is_complete && inverseOf(action);
    if (inverse) shown.querySelector("span").append(" ", switchButton("Take back…", queue, inverse, again));
    again();
  } catch (error) {
    notice(error.message, { kind: "bad", stay: true });
  }
}

const noteOf = (note) => (note ? ["--note", note] : []);

/** Return the commands for a plan. If the plan lists entries, a new plan may list others, so return one command that
 *  applies this plan and one that plans again. */
function commands(plan, words, more) {
  const yes = [...more, "--yes"];
  const newPlan = shell(...words, ...yes);
  if (!plan.entries.length) return { "On the command line:": newPlan };
  return {
    "On the command line, to apply exactly this plan (valid for an hour):": shell("queue", "apply", plan.plan_id, ...yes),
    "To plan again, with the entries that match by then:": newPlan,
  };
}
