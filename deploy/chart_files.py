"""Generate the chart's files that come from other parts of the project: ``python -m deploy.chart_files [--check]``.

It generates the names and types of clustering settings in ``values.schema.json``, and the README with its table of
values. The rules, the dashboard and Alertmanager's routes are links to ``ops/``, which Helm follows when it packages
the chart. ``--check`` lists stale files, as the chart's tests do.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from deploy.chart_readme import readme
from sploot_cluster.settings import ClusterSettings

ROOT: Final = Path(__file__).parent.parent
CHART: Final = ROOT / "charts" / "sploot-cluster"
SCHEMA: Final = CHART / "values.schema.json"
README: Final = CHART / "README.md"

TYPES: Final = {"int": {"type": "integer"}, "float": {"type": "number"}, "bool": {"type": "boolean"}}


def wanted() -> dict[Path, bytes]:
    """Return every generated file with its expected content."""
    return {SCHEMA: _schema(), README: readme(CHART / "values.yaml").encode()}


def stale() -> list[str]:
    """Return the paths of generated files that differ from their sources."""
    return [str(path.relative_to(ROOT)) for path, content in wanted().items() if path.read_bytes() != content]


def _schema() -> bytes:
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["properties"]["clustering"]["properties"] = {
        setting.name: _type_of(setting) for setting in fields(ClusterSettings) if setting.name != "models"
    }
    return (json.dumps(schema, indent=2) + "\n").encode()


def _type_of(setting: Any) -> dict[str, str]:
    return dict(TYPES.get(str(setting.type).split(" ")[0], {"type": "string"}))


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        for path, content in wanted().items():
            path.write_bytes(content)
    for problem in (left := stale()):
        print(f"{problem} differs from its source: make chart-files", file=sys.stderr)
    sys.exit(1 if left else 0)
