// The stream of server-sent events with which the server pushes new data, while a visible page needs it.
//
// A proxy may hold events back, and a server limits the number of viewers. So while no events arrive, pages load their
// data every few seconds, and the stream is opened again at increasing intervals.

import { Refused, watch } from "./api.js";
import { read } from "./exact.js";

const SILENT_MS = 7_000; // the server sends every two seconds
const PAUSES_MS = [500, 2_000, 5_000, 15_000, 60_000];

let opened = null;
let heardAt = -Infinity;

/** Whether the server recently sent an event, even one that reports a problem. */
export const isLive = () => performance.now() - heardAt < SILENT_MS;

/** Open the stream, unless it is open. `onNews` is called once per round with an object (event name -> data),
 *  `onProblem` with a sentence if there is no new data, and `onRefused` if the server refuses the caller. */
export function listen({ onNews, onProblem, onRefused }) {
  if (opened) return;
  const mine = (opened = new AbortController());
  const isOver = () => mine.signal.aborted;
  const round = {};
  const hear = (event, data) => {
    if (isOver()) return;
    round[event] = data;
    if (event !== "read" && event !== "problem") return;
    heardAt = performance.now();
    if (event === "read") onNews({ ...round });
    else onProblem(data.detail);
  };
  (async () => {
    for (let failures = 0; !isOver(); failures = isLive() ? 0 : failures + 1) {
      try {
        await receive(mine.signal, hear);
      } catch (error) {
        if (isOver()) return;
        if (error instanceof Refused && (error.status === 401 || error.status === 403)) return onRefused();
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[Math.min(isLive() ? 0 : failures, PAUSES_MS.length - 1)]));
    }
  })();
}

/** Close the stream. */
export function ignore() {
  opened?.abort();
  [opened, heardAt] = [null, -Infinity];
}

/** Receive one stream until it ends or has been silent for too long. */
async function receive(signal, hear) {
  const silence = new AbortController();
  const giveUp = () => silence.abort();
  let timer = setTimeout(giveUp, SILENT_MS);
  try {
    const body = await watch("queues/events", AbortSignal.any([signal, silence.signal]));
    const chunks = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let chunk = await chunks.read(); !chunk.done; chunk = await chunks.read()) {
      clearTimeout(timer);
      timer = setTimeout(giveUp, SILENT_MS);
      const events = (text + chunk.value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, name, data] = event.match(/^event: (.*)\ndata: (.*)$/) ?? [];
        if (name) hear(name, read(data));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}
