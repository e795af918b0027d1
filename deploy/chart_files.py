"""What the chart holds of other parts of the project, because a chart reads no file outside itself.

``python -m deploy.chart_files`` writes it: copies of the rules, the dashboards and Alertmanager's routes, and the names
of clustering settings in ``values.schema.json``. ``--check`` says what is not as it should be; ``make chart`` does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from sploot_cluster.settings import ClusterSettings

ROOT: Final = Path(__file__).parent.parent
CHART: Final = ROOT / "charts" / "sploot-cluster"
SCHEMA: Final = CHART / "values.schema.json"

# folder of the chart -> where its files come from
COPIES: Final = {
    "files/alerts": "ops/alerts/*.yaml",
    "files/dashboards": "ops/dashboards/*.json",
    "files/alertmanager": "ops/config/alertmanager.yaml",
}

TYPES: Final = {"int": {"type": "integer"}, "float": {"type": "number"}, "bool": {"type": "boolean"}}


def wanted() -> dict[Path, bytes]:
    """Every file that is made here, and what it should hold."""
    files = {
        CHART / folder / source.name: source.read_bytes()
        for folder, pattern in COPIES.items()
        for source in sorted(ROOT.glob(pattern))
    }
    return files | {SCHEMA: _schema()}


def stale() -> list[str]:
    """What is missing, different, or left over."""
    made = wanted()
    there = {path for folder in COPIES for path in (CHART / folder).glob("*") if path.is_file()}
    differing = {path for path, content in made.items() if not path.is_file() or path.read_bytes() != content}
    return sorted(str(path.relative_to(ROOT)) for path in differing | (there - set(made)))


def write() -> None:
    """Make them all as they should be."""
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
        print(f"{problem} is not what it is made of: make chart-files", file=sys.stderr)
    sys.exit(1 if left else 0)
