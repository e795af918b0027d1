"""Generate the chart's files that come from other parts of the project: ``python -m deploy.chart_files [--check]``.

A chart cannot read files outside its folder. It therefore contains copies of the rules, the dashboards and
Alertmanager's routes, and the names of clustering settings in ``values.schema.json``. Its README is made from
``values.yaml``. ``--check`` lists stale files; the tests of the chart do so too.
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

# folder of the chart -> source of its files
COPIES: Final = {
    "files/alerts": "ops/alerts/*.yaml",
    "files/dashboards": "ops/dashboards/*.json",
    "files/alertmanager": "ops/config/alertmanager.yaml",
}

TYPES: Final = {"int": {"type": "integer"}, "float": {"type": "number"}, "bool": {"type": "boolean"}}


def wanted() -> dict[Path, bytes]:
    """Return every generated file with its expected content."""
    files = {
        CHART / folder / source.name: source.read_bytes()
        for folder, pattern in COPIES.items()
        for source in sorted(ROOT.glob(pattern))
    }
    return files | {SCHEMA: _schema(), README: readme(CHART / "values.yaml").encode()}


def stale() -> list[str]:
    """Return the paths of files that are missing, different or left over."""
    made = wanted()
    present = {path for folder in COPIES for path in (CHART / folder).glob("*") if path.is_file()}
    differing = {path for path, content in made.items() if not path.is_file() or path.read_bytes() != content}
    return sorted(str(path.relative_to(ROOT)) for path in differing | (present - set(made)))


def write() -> None:
    """Write every generated file and delete left-over ones."""
    made = wanted()
    for folder in COPIES:
        (CHART / folder).mkdir(parents=True, exist_ok=True)
        for path in (CHART / folder).glob("*"):
            if path not in made:
                path.unlink()
    for path, content in made.items():
        path.write_bytes(content)


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
        write()
    for problem in (left := stale()):
        print(f"{problem} differs from its source: make chart-files", file=sys.stderr)
    sys.exit(1 if left else 0)
