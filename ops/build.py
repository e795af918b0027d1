"""Generate files from ``thresholds.yaml``: rules, dashboard, the runbook's table and links, the console's levels.

python -m ops.build           write the files that differ
python -m ops.build --check   write nothing; name the files that differ, and exit with 1 if there are any
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ops.dashboard import dashboard_json, panel_url
from ops.quick_links import with_links
from ops.rules import rule_files
from ops.tables import levels_json, with_table
from ops.thresholds import Thresholds, thresholds

OPS: Final = Path(__file__).parent
DASHBOARD: Final = OPS / "dashboards" / "media-clustering-redis-streams.json"
RUNBOOK: Final = OPS / "runbook.md"
SAMPLES: Final = OPS / "scripts" / "alerts.json"
CONSOLE: Final = OPS.parent / "sploot_cluster" / "api" / "console" / "static" / "thresholds.json"

_WRITTEN: Final = (
    "# Written by `make ops-build` from ops/thresholds.yaml and ops/rules.py; manual changes are overwritten.\n"
)


def generated(given: Thresholds) -> Mapping[Path, str]:
    """Return the content of every generated file."""
    files = {OPS / "alerts" / name: rules_text(content) for name, content in rules_of(given).items()}
    files[DASHBOARD] = dashboard_json(given)
    files[SAMPLES] = samples_json(given)
    files[CONSOLE] = levels_json(given)
    files[RUNBOOK] = with_links(with_table(RUNBOOK.read_text(encoding="utf-8"), given), given.dashboard_url)
    return files


def rules_of(given: Thresholds) -> dict[str, dict[str, Any]]:
    """Return the rules of each file by file name, with links to the panels of the dashboard."""
    return rule_files(given, lambda title: panel_url(given, title))


def samples_json(given: Thresholds) -> str:
    """Return every alert with its labels and links, as JSON for ``fire-alerts.sh``."""
    rules = [rule for file in rules_of(given).values() for group in file["groups"] for rule in group["rules"]]
    samples = [
        {
            "labels": {"alertname": rule["alert"], **rule["labels"]},
            "annotations": {name: text for name, text in rule["annotations"].items() if name != "description"},
        }
        for rule in rules
        if "alert" in rule
    ]
    return json.dumps(samples, indent=2, ensure_ascii=False) + "\n"


def rules_text(content: object) -> str:
    """Return the rules as YAML, as they are committed."""
    return _WRITTEN + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140)


def main() -> int:
    """Write or check the generated files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    check = parser.parse_args().check
    wanted = generated(thresholds())
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{'differs:' if check else 'written:'} {path.relative_to(OPS.parent)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
