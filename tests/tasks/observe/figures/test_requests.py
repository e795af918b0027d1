"""The HTTP server's own counts, as a scraper reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tasks.composition import build_app
from tasks.observe.figures.requests import STATUSES
from tasks.settings import Settings
from tests.sploot_cluster.api.front import API, client_of


def test_requests_are_counted_by_operation_and_status_starting_at_zero(redis_url: str) -> None:
    with client_of(build_app(Settings(redis_url=redis_url))) as http:

        def scraped() -> dict[tuple[str, ...], float]:
            families = text_string_to_metric_families(http.get("/metrics").text)
            samples = [sample for family in families for sample in family.samples if "http" in sample.name]
            return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

        before = scraped()
        http.get(f"{API}/pets/42/clusters")
        http.get(f"{API}/pets/43/clusters")
        http.get("/nowhere")
        after = scraped()

    total, duration = "cluster_http_requests_total", "cluster_http_request_duration_seconds_count"
    assert {before[total, "get_clusters", status] for status in STATUSES} == {0.0}
    assert after[total, "get_clusters", "2xx"] == after[duration, "get_clusters"] == 2
    assert after[total, "other", "4xx"] == 1
    assert after[total, "get_metrics", "2xx"] == 1
    assert before.keys() == after.keys()
    assert len(before) < 2_000
