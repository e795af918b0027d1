"""The queues, as an operator sees them."""

from __future__ import annotations

from dataclasses import asdict

import typer

from tasks.cli.shared import AsJson, duration_text, out, print_json, settings_of_environment, table_of
from tasks.contracts import QUEUES

app = typer.Typer(help="Look at the queues.", no_args_is_help=True)


@app.command("status")
def queue_status(as_json: AsJson = False) -> None:
    """Show what every queue holds, and who works on it."""
    from broker import RedisStreamsBroker
    from tasks.composition import build_client

    with build_client(settings_of_environment()) as client:
        broker = RedisStreamsBroker(client=client, middleware=[])
        stats = [broker.stats(queue) for queue in QUEUES]
    if as_json:
        print_json([asdict(queue) for queue in stats])
        return
    table = table_of("queue", "waiting", "in flight", "delayed", "orphaned", "dead", "oldest", "held for", "workers")
    for queue in stats:
        n_alive = sum(consumer.is_alive for consumer in queue.consumers)
        numbers = (queue.waiting, queue.in_flight, queue.delayed, queue.orphaned, queue.dead)
        table.add_row(
            queue.queue_name + (" (paused)" if queue.paused else ""),
            *map(str, numbers),
            duration_text(queue.oldest_age_ms),
            duration_text(queue.oldest_pending_idle_ms),
            str(n_alive) if n_alive else "none: start sploot-cluster worker",
        )
    out.print(table)
