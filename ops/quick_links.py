"""The quick links of the runbook.

A link to Grafana's Explore contains JSON in its address. Each quote must be escaped for the JSON and again for the
address, so the links are generated. Links for different environments differ only in the host.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

STAGING: Final = "staging.sploot.internal"

_BLOCK: Final = re.compile(r"(<!-- quick-links:[^\n]*-->\n).*?(<!-- /quick-links -->\n)", re.DOTALL)

# LogQL by link title.
LOGS: Final[Mapping[str, str]] = {
    "all lines": '{service="sploot-cluster"}',
    "failed jobs": '{service="sploot-cluster"} | json | logger="sploot-cluster.queue" | outcome!="success"',
    "dead letters": '{service="sploot-cluster"} | json | logger="sploot-cluster.queue" | message="dead letter"',
    "one pet (replace 42 with its id)": '{service="sploot-cluster"} | json | pet_id="42"',
}


def explore_url(logql: str, *, host: str = f"grafana.{STAGING}", since: str = "now-1h") -> str:
    """Return the address at which Grafana shows the logs of a LogQL query."""
    left = {
        "datasource": "Loki",
        "queries": [{"refId": "A", "expr": logql}],
        "range": {"from": since, "to": "now"},
    }
    return f"https://{host}/explore?orgId=1&left={quote(json.dumps(left, separators=(',', ':')), safe='')}"


def graph_url(promql: str, *, host: str = f"prometheus.{STAGING}", hours: int = 1) -> str:
    """Return the address at which Prometheus draws an expression."""
    return f"https://{host}/graph?g0.expr={quote(promql, safe='')}&g0.tab=0&g0.range_input={hours}h"


def links(dashboard_url: str) -> Mapping[str, str]:
    """Return the address of every quick link by its title."""
    return {
        "Dashboard “Media Clustering – Pipeline Health”": dashboard_url,
        "Prometheus console": f"https://prometheus.{STAGING}/graph",
        "Prometheus: failed attempts per minute": graph_url(
            '60 * sum(rate(cluster_jobs_total{outcome!="success"}[5m]))'
        ),
        "Prometheus: firing alerts": f"https://prometheus.{STAGING}/alerts",
        **{f"Logs: {what}": explore_url(logql) for what, logql in LOGS.items()},
    }


def with_links(runbook: str, dashboard_url: str) -> str:
    """Return the runbook with new links between its two marks.

    Raises:
        ValueError: the runbook does not have exactly one pair of marks.
    """
    items = "\n".join(f"- [{what}]({url})" for what, url in links(dashboard_url).items())
    filled, n_blocks = _BLOCK.subn(lambda block: f"{block[1]}\n{items}\n\n{block[2]}", runbook)
    if n_blocks != 1:
        raise ValueError("runbook.md needs one line <!-- quick-links: … --> and, below it, one <!-- /quick-links -->")
    return filled
