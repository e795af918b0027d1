"""Commands that capture a pet or a dead letter in a file and replay it offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sploot_cluster.answer_fields import public
from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import MAX_INT64
from tasks.cli.screen import out, print_json
from tasks.cli.shared import FAILED, AsJson, command_group, examples, settings_of_environment

if TYPE_CHECKING:
    from tasks.capture.replay import Replayed

app = command_group()

MOVED_SHOWN = 20


@app.command(
    epilog=examples(
        "sploot-cluster capture --pet 42 -o pet-42.zip",
        "sploot-cluster capture --dead-letter embedding 1764000000000-0 -o dead.zip --redact",
    )
)
def capture(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; it must not exist yet.")],
    pet: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_INT64, help="Capture a pet: its export file, its jobs, its dead letters."),
    ] = None,
    dead_letter: Annotated[
        tuple[str, str] | None, typer.Option(help="Capture a dead letter, by queue and id.", metavar="QUEUE ID")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Capture the keys of the pet as they are, even if it cannot be read.")
    ] = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave embeddings out; the capture can only be inspected.")
    ] = False,
) -> None:
    """Write a pet or a dead letter to one zip file, readable only by you."""
    from tasks.capture.file import capture_dead_letter, capture_pet, capture_raw, write_capture
    from tasks.composition import build_broker, build_client
    from tasks.queue_ops.operations import queue_named

    if (pet is None) == (dead_letter is None):
        raise InvalidInput("--pet", "expected exactly one thing to capture", "give either --pet or --dead-letter")
    if raw and pet is None:
        raise InvalidInput("--raw", "applies to pets only", "give --pet")
    settings = settings_of_environment()
    with build_client(settings) as client:
        broker = build_broker(settings, client, middleware=[])
        if dead_letter is not None:
            queue, dead_letter_id = queue_named(dead_letter[0]), dead_letter[1]
            found = broker.dead_letters(queue).get(dead_letter_id, is_whole=True)
            if found is None:
                hint = "see sploot-cluster queue dead list"
                raise InvalidInput("--dead-letter", f"{dead_letter_id} is not a dead letter of {queue}", hint)
            content = capture_dead_letter(found, settings=settings.clustering, redact=redact)
        elif raw:
            from sploot_cluster.store.repairs import PetRepairs
            from tasks.composition import build_cold_pets

            assert pet is not None
            content = capture_raw(
                pet,
                repairs=PetRepairs(client, cold=build_cold_pets(settings, client)),
                broker=broker,
                client=client,
                settings=settings.clustering,
                redact=redact,
            )
        else:
            from tasks.composition import build_store

            assert pet is not None
            content = capture_pet(
                pet,
                store=build_store(settings, client),
                broker=broker,
                client=client,
                settings=settings.clustering,
                redact=redact,
            )
    write_capture(content, output)
    out.print(f"{output}: {len(content):,} bytes")


@app.command(
    epilog=examples("sploot-cluster replay pet-42.zip", "sploot-cluster replay pet-42.zip --set growth_ratio=0.3")
)
def replay(
    file: Annotated[Path, typer.Argument(help="The capture.", metavar="FILE")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Replay with another setting, e.g. growth_ratio=0.3; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a capture in memory. Exits 1 if the labels differ from the captured ones.

    Redis is not used. With --set, differences are reported, but the command does not fail.
    """
    from tasks.capture.file import read_capture
    from tasks.capture.replay import replay as replay_capture
    from tasks.capture.replay import settings_of

    pairs = [change.partition("=") for change in changes or ()]
    changed = {name: value for name, equals, value in pairs if equals}
    if len(changed) != len(pairs):
        raise InvalidInput("--set", "is not name=value", "write e.g. growth_ratio=0.3")
    read = read_capture(file)
    done = replay_capture(read, settings_of(read, changed))
    if as_json:
        print_json(public(done) | {"is_same": done.is_same})
    else:
        _show(done)
    if done.expected is not None and not done.is_same and not changed:
        raise typer.Exit(FAILED)


def _show(done: Replayed) -> None:
    if done.expected is not None:
        same = "the same as captured" if done.is_same else f"captured: {done.expected}"
        out.print(f"{done.n_media} items, {done.n_clusters} clusters, {done.n_noise} noise")
        out.print(f"labels {done.labels}, {same}")
    for item, then, now in done.moved[:MOVED_SHOWN]:
        out.print(f"  {item}: was {then}, is {now}")
    if len(done.moved) > MOVED_SHOWN:
        out.print(f"  and {len(done.moved) - MOVED_SHOWN} more")
    for text in (*done.differences, *done.verdicts):
        out.print(text)
