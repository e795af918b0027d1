"""Prometheus rules: the PromQL of every signal, and the alerts that ``thresholds.yaml`` sets on it.

Each signal is recorded under ``media_cluster:<signal>[:<window>]`` and its alerts compare that with their levels, so a
person can draw the very number that an alert saw. Signals and alerts of one group are evaluated one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ops.thresholds import Objective, Signal, Thresholds, Told, seconds

Rule = dict[str, Any]

WORKERS: Final = 'up{job="sploot-cluster"}'
_IS_UPLOAD: Final = '{stream="streams:embedding.ingested"}'
_UPLOADS: Final = f"media_cluster_entries_added_total{_IS_UPLOAD}"
_UPLOAD_AGE: Final = f"media_cluster_oldest_job_age_seconds{_IS_UPLOAD}"
_SUCCEEDED: Final = 'sum(increase(cluster_jobs_total{outcome="success"}[$window])) > 0'
# Not what people wait for: reclusters have signals of their own, samples of the queues are nobody's work.
_IS_RECLUSTER: Final = '{stream="streams:cluster.recluster"}'
_IS_OTHER: Final = '{stream!~"streams:cluster[.](recluster|maintenance)"}'


@dataclass(frozen=True, slots=True)
class Query:
    """How a signal is measured and told.

    Attributes:
        family: alerts of one family and the same labels silence each other, the critical one the warnings.
        promql: with ``$window`` where the signal has one.
        description: what on-call reads; Prometheus's template language.
        panel: the title of the panel to look at.
        before: what is recorded before the signal, because its PromQL asks for it; name and PromQL of each.
    """

    family: str
    file: str
    promql: str
    description: str
    panel: str
    before: tuple[tuple[str, str], ...] = ()


_STARTED: Final = "cluster_worker_start_time_seconds"


def _watched_since(signal: str) -> str:
    """The name under which Prometheus keeps since when it has looked at a signal without a gap of five minutes."""
    return f"media_cluster:{signal}:watched_since"


def _new(signal: str, counter: str, *, started: str) -> tuple[tuple[str, str], ...]:
    """Return what is recorded before a signal on a counter of rare events: the values that new series began with.

    ``increase`` takes the first value of a series for where it began, and so misses what a process counted before its
    first scrape. That value counts too where the series began within the window: it was not there in the hour before,
    its process is no older, and Prometheus had watched for half a minute when it came, so that neither a restart of
    Prometheus nor a gap in its scrapes makes old values new. A process that was started again at the same address has a
    series of the same name: all that it counts is new, of which ``increase`` sees what exceeds the old value.

    Args:
        started: a series with the time at which the process at (job, instance) began to count.
    """
    first_seen = f"min_over_time(timestamp({counter})[$window:15s])"
    new = (
        f"{counter} unless present_over_time({counter}[1h:1m] offset $window)"
        f" unless on (job, instance) ({started} < time() - $seconds)"
        f" unless ({first_seen} <= on () group_left () ({_watched_since(signal)} + 30))"
    )
    if started == _STARTED:
        # not of Redis: its exporter takes the start from an uptime in whole seconds, which moves
        restarted = f"{counter} and on (job, instance) ({started} != {started} offset $window)"
        new = f"(({restarted}) > increase({counter}[$window])) or ({new})"
    return _watching(signal), (_new_of(signal), new)


def _watching(signal: str) -> tuple[str, str]:
    return _watched_since(signal), f"{_watched_since(signal)} or vector(time())"


def _new_of(signal: str) -> str:
    return f"media_cluster:{signal}:new"


_FAILED: Final = 'cluster_jobs_total{outcome!="success"}'
_CORRECTION_FAILED: Final = 'cluster_feedback_operations_total{outcome!="success"}'
_FELL_BACK: Final = "cluster_backend_fallbacks_total"
_EVICTED: Final = "redis_evicted_keys_total"
_DEAD: Final = "media_cluster_dead_letters"

# fmt: off
QUERIES: Final[Mapping[str, Query]] = {
    "failures": Query(
        "failures", "jobs",
        f"sum({_new_of('failures')} / $minutes or rate({_FAILED}[$window]) * 60)",
        "{{ $value | humanize }} attempts a minute fail. Errors are tried again; invalid ones became dead letters at "
        "once. The logs name pet_id, message_id and error of each.",
        "Job throughput",
        _new("failures", _FAILED, started=_STARTED),
    ),
    "latency": Query(
        "latency", "jobs",
        "histogram_quantile(0.95, sum by (backend, le) (rate(cluster_job_duration_seconds_bucket[$window])))",
        "One job in twenty on backend_used={{ $labels.backend }} takes longer than {{ $value | humanizeDuration }}.",
        "Job duration",
    ),
    "feedback": Query(
        "feedback", "jobs",
        f"round(sum({_new_of('feedback')} or increase({_CORRECTION_FAILED}[$window])))",
        "{{ $value | humanize }} attempts to apply a merge, a split or an undo have failed in ten minutes. People were "
        "told that their correction is on its way.",
        "Feedback operations",
        _new("feedback", _CORRECTION_FAILED, started=_STARTED),
    ),
    "noise": Query(
        "noise", "jobs",
        "max(cluster_noise_high_streak)",
        "{{ $value | humanize }} reclusters in a row, of whichever pets, left more than 30 media in no cluster.",
        "Noise count",
    ),
    # Somebody waits: what is tried again and again leaves the stream between its attempts. The age of a sample that
    # nobody takes any more does not change.
    "stall": Query(
        "stall", "jobs",
        f"max({_UPLOAD_AGE} and min_over_time({_UPLOAD_AGE}[$window]) > 0 and changes({_UPLOAD_AGE}[$window]) > 0)"
        f" unless {_SUCCEEDED}",
        "For ten minutes uploads have waited, and not one job of any kind succeeded. The oldest upload came "
        "{{ $value | humanizeDuration }} ago.",
        "Oldest job",
    ),
    "no_success": Query(
        "success", "jobs",
        f"max(increase({_UPLOADS}[$window])) unless {_SUCCEEDED}",
        '{{ printf "%.0f" $value }} uploads have come in ten minutes, each repetition counted, and not one job of any '
        "kind succeeded.",
        "Job throughput",
    ),
    "retries": Query(
        "retries", "jobs",
        "sum by (actor) (rate(cluster_job_retries_total[$window])) * 60",
        "{{ $labels.actor }} is tried again {{ $value | humanize }} times a minute.",
        "Retries",
    ),
    "fallbacks": Query(
        "backend", "jobs",
        f"round(sum by (wanted, used) ({_new_of('fallbacks')} or increase({_FELL_BACK}[$window])))",
        "{{ $value | humanize }} jobs wanted {{ $labels.wanted }} and ran on {{ $labels.used }}: right, but slower.",
        "Backend fallbacks",
        _new("fallbacks", _FELL_BACK, started=_STARTED),
    ),
    "pending": Query(
        "pending", "backlog",
        "max by (stream, group) (media_cluster_pending_jobs)",
        "Workers hold {{ $value | humanize }} jobs of {{ $labels.stream }} that they have not finished.",
        "Pending jobs",
    ),
    "lag": Query(
        "lag", "backlog",
        f"max by (stream, group) (media_cluster_stream_lag_seconds{_IS_OTHER})",
        "A worker has held a job of {{ $labels.stream }} for {{ $value | humanizeDuration }}.",
        "Stream lag",
    ),
    "recluster_lag": Query(
        "recluster", "backlog",
        f"max by (stream, group) (media_cluster_stream_lag_seconds{_IS_RECLUSTER})",
        "A recluster has run for {{ $value | humanizeDuration }}; it is interrupted after 30 minutes.",
        "Stream lag",
    ),
    "undelivered": Query(
        "undelivered", "backlog",
        "max by (stream) (media_cluster_undelivered_jobs)",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} wait for a worker.",
        "Backlog by state",
    ),
    "oldest_age": Query(
        "age", "backlog",
        f"max by (stream) (media_cluster_oldest_job_age_seconds{_IS_OTHER})",
        "The oldest job of {{ $labels.stream }} is {{ $value | humanizeDuration }} old: that is how far behind we are.",
        "Oldest job",
    ),
    "recluster_age": Query(
        "recluster-age", "backlog",
        f"max by (stream) (media_cluster_oldest_job_age_seconds{_IS_RECLUSTER})",
        "The oldest recluster is {{ $value | humanizeDuration }} old. Media are assigned meanwhile, less well.",
        "Oldest job",
    ),
    "delayed": Query(
        "delayed", "backlog",
        f"max by (stream) (media_cluster_delayed_jobs{_IS_OTHER})",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} have failed and wait for another try.",
        "Backlog by state",
    ),
    "orphans": Query(
        "orphans", "backlog",
        "max by (stream) (media_cluster_orphaned_jobs)",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} were delivered and are in nobody's pending list. Workers "
        "put such jobs back to work within seconds: none of them takes this stream.",
        "Backlog by state",
    ),
    "ids_ahead": Query(
        "ids", "backlog",
        "max by (stream) (media_cluster_ids_ahead_seconds)",
        "The last entry id of {{ $labels.stream }} is ahead of the clock by {{ $value | humanizeDuration }}. A "
        "producer chose it, or the server's clock was ahead. Jobs run as before; their ages are counted from when "
        "they were first seen.",
        "Oldest job",
    ),
    "exhausted": Query(
        "ids", "backlog",
        "max by (stream) (media_cluster_stream_exhausted)",
        "{{ $labels.stream }} has no more entry ids to give, because a producer used the greatest: every XADD fails, "
        "of workers and clients too.",
        "Added and done",
    ),
    "vanished": Query(
        "vanished", "backlog",
        "round(max by (stream) (increase(media_cluster_entries_vanished_total[$window])))",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} were removed in half an hour and no worker settled them: "
        "an XADD with MAXLEN or MINID, an XTRIM, or an XDEL by hand. They are lost unless their producers send again.",
        "Added and done",
    ),
    "overdue": Query(
        "overdue", "backlog",
        "max by (stream) (media_cluster_overdue_jobs)",
        "Living workers hold {{ $value | humanize }} jobs of {{ $labels.stream }} beyond their time limit. Their "
        "threads hang, and no lease ends for what they hold.",
        "Overdue jobs",
    ),
    "dead_new": Query(
        "dead", "backlog",
        # A stream that nobody told of before began with none. After a gap, what was there before the gap is not new.
        f"(max by (stream) ({_DEAD}) unless on (stream) present_over_time({_DEAD}[1h:1m] offset $window)"
        f" unless on (stream) (min by (stream) (min_over_time(timestamp({_DEAD})[$window:15s]))"
        f" <= on () group_left () ({_watched_since('dead_new')} + 30)))"
        f" or (max by (stream) ({_DEAD}) - min by (stream) (min_over_time({_DEAD}[$window]) or"
        f' label_replace(max by (stream) (last_over_time({_DEAD}[1h:1m] offset $window)), "when", "before", "", "")))',
        "{{ $value | humanize }} jobs of {{ $labels.stream }} have become dead letters in half an hour. Each tells its "
        "reason; what failed for a reason that has passed can be sent again.",
        "Dead letters",
        (_watching("dead_new"),),
    ),
    "dead": Query(
        "dead-stock", "backlog",
        "max by (stream) (media_cluster_dead_letters)",
        "{{ $value | humanize }} dead letters of {{ $labels.stream }} wait for a person.",
        "Dead letters",
    ),
    "sample_age": Query(
        "sample", "pods",
        "time() - max(media_cluster_backlog_sample_timestamp_seconds)",
        "The numbers of every queue are {{ $value | humanizeDuration }} old: alerts on them are blind.",
        "Sample age",
    ),
    "scheduler_age": Query(
        "scheduler", "pods",
        "time() - max(media_cluster_scheduler_tick_timestamp_seconds)",
        "The scheduler has sent nothing for {{ $value | humanizeDuration }}; it does so every minute.",
        "Sample age",
    ),
    "worker_down": Query(
        "workers", "pods",
        f"count by (instance) ({WORKERS} == 0)",
        "{{ $labels.instance }} answers no scrape.",
        "Workers",
    ),
    "workers_up": Query(
        "workers", "pods",
        f"count({WORKERS} == 1) or vector(0)",
        "No worker pod answers a scrape: nothing says that any job runs.",
        "Workers",
    ),
    "log_drops": Query(
        "logs", "pods",
        "round(sum(increase(cluster_log_lines_dropped_total[$window])))",
        "Workers dropped {{ $value | humanize }} log lines in ten minutes: the reader of their log is slow or stopped. "
        "Jobs go on.",
        "Dropped log lines",
    ),
    "unconserved": Query(
        "conservation",
        "pods",
        "max(cluster_pets_unconserved)",
        "Of {{ $value | humanize }} pets, what came in is not what is clustered, noise, quarantined and dismissed.",
        "Pets that do not add up",
    ),
    "redis_unseen": Query(
        "redis", "pods",
        f"count({WORKERS} == 1)"
        ' unless on () max(media_cluster_backlog_sample_timestamp_seconds{job="sploot-cluster"})',
        "{{ $value | humanize }} worker pods answer, and none of them can read the queues from Redis.",
        "Workers",
    ),
    "redis_refuses": Query(
        "redis", "pods",
        # where Redis refuses reads too, that it cannot be read is the alert
        "count(media_cluster_redis_writable == 0"
        " and on (job, instance) media_cluster_backlog_sample_timestamp_seconds)",
        "{{ $value | humanize }} processes asked Redis to take a write, and it refused: it or its disk is full, its "
        "replicas are gone, or it is a replica itself. No job is enqueued or finished; sploot-cluster doctor names "
        "the cause.",
        "Redis takes writes",
    ),
    "redis_memory": Query(
        "redis-memory", "pods",
        "max by (instance) (redis_memory_used_bytes / (redis_memory_max_bytes > 0))",
        "Redis at {{ $labels.instance }} uses {{ $value | humanizePercentage }} of its memory. With noeviction it then "
        "refuses every write.",
        "Redis memory",
    ),
    "redis_evictions": Query(
        "redis-evictions", "pods",
        f"round(max by (instance) ({_new_of('redis_evictions')} or increase({_EVICTED}[$window])))",
        "Redis at {{ $labels.instance }} has evicted {{ $value | humanize }} keys: queues or pets are lost.",
        "Redis keys and evictions",
        _new("redis_evictions", _EVICTED, started="redis_start_time_seconds"),
    ),
}
# fmt: on


def rule_files(thresholds: Thresholds, panel_url: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """File name -> what Prometheus reads there.

    Args:
        panel_url: the address of the panel with this title.
    """
    files: dict[str, dict[str, Any]] = {}
    for name, query in QUERIES.items():
        signal = thresholds.signals[name]
        groups = files.setdefault(f"{query.file}.yaml", {"groups": []})["groups"]
        groups.append({"name": f"media-cluster-{name}", "rules": _rules_of(thresholds, signal, query, panel_url)})
    files["slo.yaml"] = {
        "groups": [
            {"name": "media-cluster-slo", "rules": _rules_of_slo(thresholds, panel_url("Error budget burn rate"))}
        ]
    }
    return files


def recorded_as(signal: Signal) -> str:
    """The name under which Prometheus keeps a signal."""
    return f"media_cluster:{signal.name}" + (f":{signal.window}" if signal.window else "")


def promql_of(signal: Signal) -> str:
    """How a signal is measured."""
    return _over(signal, QUERIES[signal.name].promql)


def _over(signal: Signal, promql: str) -> str:
    """The PromQL with the signal's window in it."""
    if not signal.window:
        return promql
    length_s = seconds(signal.window)
    for word, value in {"$window": signal.window, "$seconds": f"{length_s}", "$minutes": f"{length_s // 60}"}.items():
        promql = promql.replace(word, value)
    return promql


def _rules_of(thresholds: Thresholds, signal: Signal, query: Query, panel_url: Callable[[str], str]) -> list[Rule]:
    rules: list[Rule] = [{"record": name, "expr": _over(signal, promql)} for name, promql in query.before]
    rules.append({"record": recorded_as(signal), "expr": promql_of(signal)})
    for name, level in signal.levels.items():
        rule = _alert(thresholds, name, level, query.family, f"{recorded_as(signal)} {level.condition}", level.hold)
        rule["annotations"] |= {"description": query.description, "dashboard_url": panel_url(query.panel)}
        rules.append(rule)
    return rules


def _rules_of_slo(thresholds: Thresholds, panel_url: str) -> list[Rule]:
    slo = thresholds.slo
    rules: list[Rule] = []
    long_windows = {burn.long for burn in slo.burns.values()}
    for window in slo.windows:
        failed = f'sum(increase(cluster_jobs_total{{outcome!="success"}}[{window}]))'
        if window in long_windows:
            rules.append({"record": f"media_cluster:failed:{window}", "expr": failed})
        ratio = f"{failed} / sum(increase(cluster_jobs_total[{window}]))"
        rules.append({"record": f"media_cluster:failure_ratio:{window}", "expr": ratio})
    for name, burn in slo.burns.items():
        limit = f"{burn.burn * (1 - slo.objective):.6g}"
        rule = _alert(thresholds, name, burn, "slo", burn_promql(slo, burn.long, burn.short, limit))
        rule["annotations"] |= {
            "description": (
                f"{{{{ $value | humanizePercentage }}}} of attempts failed in the last {burn.long}, and it goes on. "
                f"The objective is that {slo.objective:.0%} succeed over {slo.period}."
            ),
            "dashboard_url": panel_url,
        }
        rules.append(rule)
    return rules


def burn_promql(slo: Objective, long: str, short: str, limit: str) -> str:
    """True while both windows are above the limit, and enough failed to speak of a rate."""
    return (
        f"media_cluster:failure_ratio:{long} > {limit} and media_cluster:failure_ratio:{short} > {limit}"
        f" and media_cluster:failed:{long} >= {slo.least_failures}"
    )


def _alert(thresholds: Thresholds, name: str, told: Told, family: str, expr: str, hold: str = "") -> Rule:
    return {
        "alert": name,
        "expr": expr,
        **({"for": hold} if hold else {}),
        "labels": {"service": "sploot-cluster", "family": family, **told.labels},
        "annotations": {
            "summary": told.summary,
            "runbook_url": f"{thresholds.runbook_url}#{name.lower()}",
        },
    }
