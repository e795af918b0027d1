"""The runbook's quick links, made so that they decode to what they should.

A link to Grafana's Explore carries JSON in its address: every quote in it must be escaped for the JSON and then for the
address, which nobody does right by hand. The links of one environment differ from another's by the host alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

STAGING: Final = "staging.sploot.internal"

_BLOCK: Final = re.compile(r"(<!-- quick-links:[^\n]*-->\n).*?(<!-- /quick-links -->\n)", re.DOTALL)

# LogQL of the lines that the runbook asks for.
LOGS: Final[Mapping[str, str]] = {
    "Every line": '{service="sploot-cluster"}',
    "Jobs that failed": '{service="sploot-cluster"} | json | logger="sploot-cluster.queue" | outcome!="success"',
    "Dead letters": '{service="sploot-cluster"} | json | logger="sploot-cluster.queue" | message="dead letter"',
    "One pet (put its number in the place of 42)": '{service="sploot-cluster"} | json | pet_id="42"',
}


def explore_url(logql: str, *, host: str = f"grafana.{STAGING}", since: str = "now-1h") -> str:
    """Where Grafana shows these logs."""
    left = {
        "datasource": "Loki",
        "queries": [{"refId": "A", "expr": logql}],
        "range": {"from": since, "to": "now"},
    }
    return f"https://{host}/explore?orgId=1&left={quote(json.dumps(left, separators=(',', ':')), safe='')}"


def graph_url(promql: str, *, host: str = f"prometheus.{STAGING}", hours: int = 1) -> str:
    """Where Prometheus draws this expression."""
    return f"https://{host}/graph?g0.expr={quote(promql, safe='')}&g0.tab=0&g0.range_input={hours}h"


def links(dashboard_url: str) -> Mapping[str, str]:
    """Every quick link by what it shows."""
    return {
        "Dashboard “Media Clustering – Pipeline Health”": dashboard_url,
        "Prometheus console": f"https://prometheus.{STAGING}/graph",
        "Prometheus: failed attempts a minute": graph_url('60 * sum(rate(cluster_jobs_total{outcome!="success"}[5m]))'),
        "Prometheus: alerts that fire": f"https://prometheus.{STAGING}/alerts",
        **{f"Logs: {what}": explore_url(logql) for what, logql in LOGS.items()},
    }


def with_links(runbook: str, dashboard_url: str) -> str:
    """The runbook with the block between its two marks filled anew.

    Raises:
        ValueError: it does not have exactly one such block.
    """
    told = "\n".join(f"- [{what}]({url})" for what, url in links(dashboard_url).items())
    filled, n_blocks = _BLOCK.subn(lambda block: f"{block[1]}\n{told}\n\n{block[2]}", runbook)
    if n_blocks != 1:
        raise ValueError("runbook.md needs one line <!-- quick-links: … --> and, below it, one <!-- /quick-links -->")
    return filled
