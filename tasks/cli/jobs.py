"""The command that shows a job."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tasks.cli.screen import out, print_json
from tasks.cli.shared import FAILED, AsJson, command_group, ended, examples, fail, open_tasks

app = command_group()


@app.command(
    epilog=examples(
        "sploot-cluster job 3f0c7a52-6f1e-4a57-9a0e-3d5f0f0f9a11",
        "sploot-cluster job 3f0c7a52-6f1e-4a57-9a0e-3d5f0f0f9a11 --wait 60",
    )
)
def job(
    job_id: Annotated[str, typer.Argument(help="The job's id, as the command that enqueued it printed.", metavar="ID")],
    wait: Annotated[float | None, typer.Option(help="Wait up to this many seconds for the job to end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: its state and why it waits, what it is doing or how it ended. Exits 1 if it failed or is unknown."""
    from sploot_cluster.jobs import JobRef

    with open_tasks() as tasks:
        status = tasks.job(job_id)
        if status is None:
            fail(
                FAILED,
                f"job {job_id} is unknown: it was never enqueued, or ended more than a day ago; items have no status, "
                "but sploot-cluster queue find --pet PET finds those that wait",
            )
        if wait is not None:
            status = ended(tasks, JobRef(job_id, status.queue), wait)
    if as_json:
        print_json(status)
    else:
        out.print(f"job {job_id} {status.state}: {status.reason}")
        about = f"  {status.actor} in queue {status.queue}"
        out.print(about if status.pet_id is None else f"{about}, pet {status.pet_id}")
        for name, at in (
            ("enqueued", status.enqueued_at),
            ("started", status.started_at),
            ("due", status.due_at),
            ("ended", status.finished_at),
        ):
            if at is not None:
                out.print(f"  {name} {_utc(at)}")
        for failure in status.failures:
            out.print(f"  attempt {failure.attempt} failed {_utc(failure.failed_at)}: {failure.error}")
        for name, value in (status.result or {}).items():
            out.print(f"  {name}: {value}")
        if status.state == "dead":
            out.print(f"  its dead letter: sploot-cluster queue dead list {status.queue}")
    if status.state in ("dead", "cancelled"):
        raise typer.Exit(FAILED)


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
