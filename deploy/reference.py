"""Write the reference pages of docs/reference, and the JSON Schema of docs/wire, from the code: ``make reference``.

The HTTP page comes from the OpenAPI document, the command-line page from the commands' help, and the pages of settings,
metrics and platforms, and the schema, from their declarations. ``--check`` lists the pages that are out of date.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from deploy import platforms
from deploy.wire_schema import schema_of_flat_event
from ops.rules import alerts

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
WIDTH: Final = 110


def pages() -> dict[str, str]:
    """Return the text of every page, by its path in docs/."""
    writers: dict[str, Callable[[], Iterable[str]]] = {
        "reference/http.md": _http,
        "reference/command-line.md": _command_line,
        "reference/settings.md": _settings,
        "reference/metrics.md": _metrics,
        "reference/platforms.md": platforms.lines,
    }
    head = "<!-- Written by `make reference`; change the code, not this page. -->"
    written = {name: "\n".join([head, *write()]).rstrip() + "\n" for name, write in writers.items()}
    return written | {"wire/embedding.ingested-1.schema.json": schema_of_flat_event()}


def outdated(directory: Path = DOCS) -> list[str]:
    """Return the paths of the pages that are out of date."""
    written = pages()
    return [name for name, text in written.items() if _text_of(directory / name) != text]


def runbook_of_incidents() -> tuple[Path, str]:
    """Return the path and the text of the file with every alert's runbook section, which the console shows."""
    static = ROOT / "sploot_cluster" / "api" / "console" / "static"
    runbook = (ROOT / "ops" / "runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n\n(.*?)\n(?=^##)", runbook, flags=re.DOTALL | re.MULTILINE))
    named = {name: sections[name].strip() for name in alerts()}
    return static / "runbook.json", json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def index_of_commands() -> tuple[Path, str]:
    """Return the path and the text of the index that the command line reads instead of importing all commands."""
    from tasks.cli import index

    return Path(index.__file__).with_name("index.json"), index.generated()


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _http() -> Iterator[str]:
    from tasks.composition import build_app
    from tasks.settings import Settings

    document = build_app(Settings()).openapi()
    schemas = document["components"]["schemas"]
    yield from ["# HTTP", "", *_wrapped(document["info"]["description"].strip()), ""]
    yield "`GET /openapi.json` returns the same as JSON, for code generators. Events that producers write to Redis"
    yield "directly are described in [docs/wire](../wire/README.md)."
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for tag, operations in by_tag.items():
        yield from ["", f"## {tag.capitalize()}"]
        for method, path, operation in operations:
            yield from ["", f"### {method} {path}", "", *_wrapped(f"{operation['summary']}.".replace("?.", "?"))]
            if description := operation.get("description"):
                yield from ["", *_wrapped(description)]
            yield from _parameters(operation.get("parameters", ()))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body is not None:
                yield from _body(body, schemas)
            yield from ["", f"Status codes: {', '.join(sorted(operation['responses']))}."]


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _listed(
        (f"`{one['name']}` ({one['in']})", one.get("description") or one["schema"].get("description", ""))
        for one in parameters
    )


def _body(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    named = [schema, *schema.get("anyOf", ())]
    for name in (one["$ref"].rpartition("/")[2] for one in named if "$ref" in one):
        of_body = schemas[name]
        required = set(of_body.get("required", ()))
        yield from _listed(
            (f"`{field}` ({_type(one)}{'' if field in required else ', optional'})", one.get("description", ""))
            for field, one in of_body.get("properties", {}).items()
        )


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _command_line() -> Iterator[str]:
    os.environ.setdefault("COLUMNS", str(WIDTH))
    import typer

    from tasks.cli import app

    root: Any = typer.main.get_command(app)
    yield from ["# Command line", "", "`sploot-cluster`, or `python -m tasks.cli`.", ""]
    yield "Exit codes: 0 done, 1 failed, 2 bad argument or setting, 3 Redis unreachable, 4 refused."
    yield "Every listing accepts `--json`; for a pet, it prints the response of the HTTP API. A command that changes a"
    yield "lot prints its plan and needs `--yes`."
    for path, command in _commands(root, ("sploot-cluster",)):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        usage = " ".join([*path, *(one.metavar or one.name.upper() for one in arguments)])
        yield from ["", f"## {' '.join(path[1:])}", "", "```", usage, "```", "", *_wrapped(command.help or "")]
        listed = [(f"`{one.metavar or one.name.upper()}`", getattr(one, "help", None) or "") for one in arguments]
        listed += [(f"`{', '.join([*one.opts, *one.secondary_opts])}`", one.help or "") for one in options]
        yield from _listed(listed)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from _commands(one, (*path, name))
        else:
            yield (*path, name), one


def _settings() -> Iterator[str]:
    from tasks.settings import Settings

    yield from ["# Settings", "", "Environment variables of every process; `sploot-cluster config show` prints their"]
    yield from ["values. A variable that is empty keeps its default.", ""]
    for row in Settings().table():
        default = f" (default `{row['default']}`{' ' * bool(row['unit'])}{row['unit']})" if row["default"] else ""
        yield from _listed([(f"`{row['variable']}`{default}", row["meaning"])])[1:]


def _metrics() -> Iterator[str]:
    import redis
    from prometheus_client import CollectorRegistry

    from tasks.observe.backlog import BacklogCollector
    from tasks.observe.figures.process import Pod, ProcessCollector
    from tasks.observe.figures.requests import RequestMetrics
    from tasks.observe.media_totals import MediaCollector
    from tasks.observe.metrics import JobMetrics

    registry = CollectorRegistry()
    JobMetrics(registry)
    client = redis.Redis()  # describe() sends no command
    of_process = ProcessCollector(client, rollout_percent=100, pod=Pod(lambda: False, started_at=0.0))
    yield from [
        "# Metrics",
        "",
        "`GET /metrics` of a worker pod, port 9105 by default; `/metrics` of the HTTP server has",
    ]
    yield "its own counts and everything that is sampled. `pet_id` is never a label: it is in the logs."
    for title, families in (
        ("Counted by workers", list(registry.collect())),
        ("Counted by the HTTP server", list(RequestMetrics().collect())),
        ("Sampled from the queues", list(BacklogCollector(client).describe())),
        ("Sampled from the pets", list(MediaCollector(client).describe())),
        ("About the process that answers", list(of_process.describe())),
    ):
        yield from ["", f"## {title}", *_listed((_name_of(family), family.documentation) for family in families)]


def _name_of(family: Any) -> str:
    labels = getattr(family, "_labelnames", ()) or sorted({n for s in family.samples for n in s.labels} - {"le"})
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"`{name}` ({family.type}{'; labels ' * bool(labels)}{', '.join(f'`{one}`' for one in labels)})"


def _listed(items: Iterable[tuple[str, str]]) -> list[str]:
    """Return a Markdown list of names and their meanings after an empty line, or no lines if there are no names."""
    lines = [
        fill(f"- {name}: {_sentence(text)}" if text else f"- {name}", WIDTH, subsequent_indent="  ")
        for name, text in items
    ]
    return ["", *lines] if lines else []


def _sentence(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if one_line.endswith((".", "?", "!")) else f"{one_line}."


def _wrapped(text: str) -> list[str]:
    """Return the text wrapped, paragraph by paragraph, with an empty line between paragraphs."""
    filled = [fill(" ".join(part.split()), WIDTH) for part in text.split("\n\n") if part.strip()]
    return ["\n\n".join(filled)]


def main(arguments: Sequence[str]) -> int:
    """Write the pages; with ``--check``, return 1 if one is out of date."""
    if list(arguments) == ["--check"]:
        files = (index_of_commands(), runbook_of_incidents())
        names = [f"docs/{name}" for name in outdated()] + [str(file) for file, text in files if _text_of(file) != text]
        for name in names:
            print(f"{name} differs from the code: make reference", file=sys.stderr)
        return 1 if names else 0
    # first, because the command-line page is made from the index
    for file, text in (index_of_commands(), runbook_of_incidents()):
        file.write_text(text, encoding="utf-8")
    for name, text in pages().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
