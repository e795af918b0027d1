"""Check the packages of the image for known vulnerabilities: ``python -m deploy.audit``.

pip-audit queries PyPI, and OSV if PyPI cannot be reached or does not know the packages. Exit code 0: no known
vulnerabilities. 1: vulnerabilities were found and printed. 75: no service could be reached, so nothing was checked; CI
without network access reports this and continues.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
OPTIONS: Final = ("--requirement=requirements.lock", "--require-hashes", "--disable-pip", "--progress-spinner=off")

NOT_ASKED: Final = 75  # EX_TEMPFAIL in sysexits.h


def asked(service: str) -> dict[str, Any] | None:
    """Return a vulnerability service's report about every package, or None if the service cannot be reached."""
    pip_audit = str(Path(sys.executable).with_name("pip-audit"))
    command = [pip_audit, f"--vulnerability-service={service}", *OPTIONS, "--format=json"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(finished.stdout)
    except ValueError:
        return None
    return report


def verdict(report: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print for a service's report."""
    if report is None:
        return NOT_ASKED, ["the service cannot be reached"]
    skipped = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    if len(skipped) == len(report["dependencies"]):
        return NOT_ASKED, [f"the service knows none of the {len(skipped)} packages: it serves another registry"]
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no release yet'}"
        for one in report["dependencies"]
        for flaw in one.get("vulns", ())
    ]
    unknown = [f"not audited: {', '.join(skipped)}"] if skipped else []
    return (1 if found else 0), [*found, *unknown]


def main() -> int:
    """Query the services in turn until one returns a report; print the verdict and return its exit code."""
    for service in ("pypi", "osv"):
        code, lines = verdict(asked(service))
        for line in lines:
            print(f"pip-audit ({service}): {line}")
        if code != NOT_ASKED:
            print(f"pip-audit ({service}): {'vulnerable' if code else 'no known vulnerabilities in the image'}")
            return code
    print("pip-audit: NOT AUDITED, no vulnerability service can be reached from this machine")
    return NOT_ASKED


if __name__ == "__main__":
    sys.exit(main())
