// Pages that the server's events keep up to date. The events contain the figures of all queues, but no lists, jobs or
// history. So these are loaded again when the figures that they depend on have changed, and at least once a minute.

const LATEST_MS = 60_000;

/** Return the data to show after events: the same data if the figures are the same, or null to load the list again.
 *
 *  `data.figures` are the figures that were read before the list. */
export function kept(data, figures) {
  const isSame = JSON.stringify(data.figures) === JSON.stringify(figures) && performance.now() - data.loadedAt < LATEST_MS;
  return isSame ? data : null;
}

/** Return a function that reports, for the figures of an event, whether a page must load its data again: because other
 *  figures were in the last event for which it did, or because that was a minute ago; but not more often than `restMs`. */
export function changes(restMs = 0) {
  let [known, askedAt] = [null, -Infinity];
  return (figures) => {
    const [now, age] = [JSON.stringify(figures), performance.now() - askedAt];
    if (age < restMs || (now === known && age < LATEST_MS)) return false;
    [known, askedAt] = [now, performance.now()];
    return true;
  };
}

/** Return the figures to compare for a list of unfinished jobs: all that change when a job is added, taken or ended. */
export const figuresOfJobs = (queue) => queue && [queue.last_entry_id, queue.undelivered, queue.in_flight, queue.delayed, queue.orphaned, queue.dead, queue.consumers.map(({ name, pending, is_alive }) => [name, pending, is_alive])];
