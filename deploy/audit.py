"""Ask whether anything that the image installs has a known vulnerability: ``python -m deploy.audit``.

pip-audit asks PyPI, and OSV where PyPI does not know. Exit code 0: asked, and nothing found. 1: something found; it is
printed. 75: nobody could be asked from here, which is no answer, and said so; CI of a machine without that network
shows the line and goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
OPTIONS: Final = ("--requirement=requirements.lock", "--require-hashes", "--disable-pip", "--progress-spinner=off")

NOT_ASKED: Final = 75  # EX_TEMPFAIL of sysexits


def asked(service: str) -> dict[str, Any] | None:
    """What a service says of every package; None when it cannot be reached."""
    pip_audit = str(Path(sys.executable).with_name("pip-audit"))
    command = [pip_audit, f"--vulnerability-service={service}", *OPTIONS, "--format=json"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(said.stdout)
    except ValueError:
        return None
    return report


def verdict(report: dict[str, Any] | None) -> tuple[int, list[str]]:
    """The exit code and what to print, for one service's report."""
    if report is None:
        return NOT_ASKED, ["the service cannot be reached"]
    skipped = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    if len(skipped) == len(report["dependencies"]):
        return NOT_ASKED, [f"the service knows none of {len(skipped)} packages: it answers for another registry"]
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no release yet'}"
        for one in report["dependencies"]
        for flaw in one.get("vulns", ())
    ]
    unknown = [f"not audited: {', '.join(skipped)}"] if skipped else []
    return (1 if found else 0), [*found, *unknown]


def main() -> int:
    """Ask one service after the other until one answers."""
    for service in ("pypi", "osv"):
        code, lines = verdict(asked(service))
        for line in lines:
            print(f"pip-audit ({service}): {line}")
        if code != NOT_ASKED:
            print(f"pip-audit ({service}): {'vulnerable' if code else 'nothing known against what the image installs'}")
            return code
    print("pip-audit: NOT AUDITED, no vulnerability service answers from here")
    return NOT_ASKED


if __name__ == "__main__":
    sys.exit(main())
