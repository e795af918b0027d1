"""The README of the chart: how to install it, and a table of its values, made from the comments in ``values.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LINE: Final = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z0-9_]+):(?: (?P<value>.*))?")

_INTRODUCTION: Final = """\
# sploot-cluster

Groups the photos of each pet into clusters: worker pools, a scheduler and an HTTP server with a console. Redis 6.2 or
newer, or Valkey, must already be running.

```bash
kubectl create namespace media
kubectl -n media create secret generic sploot-cluster-redis --from-file=url=./redis-url
kubectl -n media create secret generic sploot-cluster-api-tokens --from-file=tokens=./tokens
helm install sploot-cluster charts/sploot-cluster -n media \\
  --set image.repository=… --set podMonitor.enabled=true --set prometheusRule.enabled=true
helm test sploot-cluster -n media
```

[Deployment](../../docs/how-to/deployment.md) explains scaling, worker pools, Redis and limits;
[Values of other charts](../../docs/how-to/chart-values.md) shows what the values that you know are called here.

Scanners such as checkov report some intentional defaults: no CPU limits, which would throttle jobs while other
cores are idle; the pull policy `IfNotPresent`, because a version's tag is never reused (set `image.digest` to be sure);
no readiness probe of the scheduler, which serves no requests; no probes of the pod of `helm test`, which runs once.

## Values

Every other value is refused. This table is generated from `values.yaml` by `make chart-files`.

| value | default | meaning |
|---|---|---|
"""


def readme(values: Path) -> str:
    """Return the README for a chart with these values."""
    return _INTRODUCTION + "".join(
        f"| `{path}` | {_code(default)} | {text} |\n" for path, default, text in rows(values)
    )


def rows(values: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, default and description of every value, and of each section that has a comment.

    The description is the comment above a value. If several values follow a comment, it describes only the first.
    """
    sections: list[tuple[int, str]] = []
    comment: list[str] = []
    list_at: int | None = None  # the indentation of the list whose items are being skipped
    lines = values.read_text().splitlines()
    for at, line in enumerate(lines):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("#"):
            comment.append(text.removeprefix("#").strip())
            continue
        found = _LINE.fullmatch(line)
        if found is None or (list_at is not None and indent > list_at):
            comment = []
            continue
        sections = [section for section in sections if section[0] < indent]
        path = ".".join([*(name for _, name in sections), found["name"]])
        is_list = found["value"] is None and lines[at + 1].lstrip().startswith("- ")
        list_at = indent if is_list else None
        if found["value"] is None and not is_list:
            sections.append((indent, found["name"]))
            if not comment:
                continue
        yield path, "a list" if is_list else found["value"] or "", " ".join(comment)
        comment = []


def _code(default: str) -> str:
    return f"`{default}`" if default and default != "a list" else default
