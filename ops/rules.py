"""Prometheus rules: the PromQL of every signal, and the alerts that ``thresholds.yaml`` sets on it.

Each signal is recorded under ``media_cluster:<signal>[:<window>]``, and its alerts compare the recorded value with
their levels, so an operator can draw the number that an alert evaluated. Prometheus evaluates the rules of a group in
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ops.thresholds import Notification, Objective, Signal, Thresholds, seconds

Rule = dict[str, Any]

WORKERS: Final = 'up{job="sploot-cluster"}'
_IS_UPLOAD: Final = '{stream="streams:embedding.ingested"}'
_UPLOADS: Final = f"media_cluster_entries_added_total{_IS_UPLOAD}"
_UPLOAD_AGE: Final = f"media_cluster_oldest_job_age_seconds{_IS_UPLOAD}"
_SUCCEEDED: Final = 'sum(increase(cluster_jobs_total{outcome="success"}[$window])) > 0'
# Users do not wait for reclusters, which have their own signals, or for maintenance jobs, which only sample queues.
_IS_RECLUSTER: Final = '{stream="streams:cluster.recluster"}'
_IS_OTHER: Final = '{stream!~"streams:cluster[.](recluster|maintenance)"}'
# The queues that refuse producers beyond the queue limit: all but maintenance, which only the scheduler fills.
_IS_BOUNDED: Final = '{stream!="streams:cluster.maintenance"}'
_HELD: Final = " + ".join(
    f"max by (stream) (media_cluster_{state}_jobs{_IS_BOUNDED})" for state in ("undelivered", "pending", "orphaned")
)


@dataclass(frozen=True, slots=True)
class Query:
    """The measurement of a signal, and the text of its alerts.

    Attributes:
        family: a critical alert inhibits the warnings of its family that have the same labels.
        file: the rule file without its extension.
        promql: the expression; ``$window`` stands for the window of the signal.
        description: the text for the engineer on call, in Prometheus's template language.
        panel: the title of the panel that the alert links to.
        before: name and PromQL of the rules that must be recorded before the signal.
    """

    family: str
    file: str
    promql: str
    description: str
    panel: str
    before: tuple[tuple[str, str], ...] = ()


_STARTED: Final = "cluster_worker_start_time_seconds"


def _watched_since(signal: str) -> str:
    """Return the name of the series that holds the time since which Prometheus has had no gap of five minutes."""
    return f"media_cluster:{signal}:watched_since"


def _first_seen(series: str) -> str:
    """Return the time of the oldest sample in the window; the newest may lie between two steps of the subquery."""
    return f"(min_over_time(timestamp({series})[$window:15s]) or timestamp({series}))"


def _new(signal: str, counter: str, *, started: str) -> tuple[tuple[str, str], ...]:
    """Return the rules to record before a signal on a counter of rare events. They add the first values of new series.

    ``increase`` treats the first value of a series as its start, so it misses what a process counted before its first
    scrape. The rules add that first value if the series is new within the window: it was absent in the hour before, its
    process is not older, and Prometheus had been watching for half a minute when it appeared. So neither a restart of
    Prometheus nor a gap in its scrapes makes old values new. A process that restarts at the same address continues a
    series: everything that it counts is new, and ``increase`` sees only the part above the old value.

    Args:
        started: the series with the time at which the process at (job, instance) began to count.
    """
    new = (
        f"{counter} unless present_over_time({counter}[1h:1m] offset $window)"
        f" unless on (job, instance) ({started} < time() - $seconds)"
        f" unless ({_first_seen(counter)} <= on () group_left () ({_watched_since(signal)} + 30))"
    )
    if started == _STARTED:
        # not for Redis: its exporter derives the start from an uptime in whole seconds, so the start jitters
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
        "{{ $value | humanize }} attempts fail per minute. Attempts with outcome error are retried; invalid messages "
        "are dead letters already. The log line of each attempt has pet_id, message_id and error.",
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
        "{{ $value | humanize }} attempts to apply a merge, a split or an undo failed in ten minutes. The users expect "
        "their corrections to be applied.",
        "Feedback operations",
        _new("feedback", _CORRECTION_FAILED, started=_STARTED),
    ),
    "noise": Query(
        "noise", "jobs",
        "max(cluster_noise_high_streak)",
        "{{ $value | humanize }} reclusters in a row, of any pets, left more than 30 items in no cluster.",
        "Noise count",
    ),
    # Uploads must wait during the whole window. A job that is only being retried does not count, because it leaves the
    # stream between its attempts. The age must change, because it stays constant when samples stop.
    "stall": Query(
        "stall", "jobs",
        f"max({_UPLOAD_AGE} and min_over_time({_UPLOAD_AGE}[$window]) > 0 and changes({_UPLOAD_AGE}[$window]) > 0)"
        f" unless {_SUCCEEDED}",
        "For ten minutes uploads have been waiting, and no job of any kind succeeded. The oldest upload came "
        "{{ $value | humanizeDuration }} ago.",
        "Oldest job",
    ),
    "no_success": Query(
        "success", "jobs",
        f"max(increase({_UPLOADS}[$window])) unless {_SUCCEEDED}",
        '{{ printf "%.0f" $value }} uploads came in ten minutes, retries included, and no job of any kind '
        "succeeded.",
        "Job throughput",
    ),
    "retries": Query(
        "retries", "jobs",
        "sum by (actor) (rate(cluster_job_retries_total[$window])) * 60",
        "{{ $value | humanize }} attempts of {{ $labels.actor }} fail per minute and will be retried.",
        "Retries",
    ),
    "fallbacks": Query(
        "backend", "jobs",
        f"round(sum by (wanted, used) ({_new_of('fallbacks')} or increase({_FELL_BACK}[$window])))",
        "{{ $value | humanize }} jobs wanted {{ $labels.wanted }} and ran on {{ $labels.used }}. Results are "
        "identical, only slower.",
        "Backend fallbacks",
        _new("fallbacks", _FELL_BACK, started=_STARTED),
    ),
    "pending": Query(
        "pending", "backlog",
        "max by (stream, group) (media_cluster_pending_jobs)",
        "Workers hold {{ $value | humanize }} unfinished jobs of {{ $labels.stream }}.",
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
    "queue_fill": Query(
        "queue-fill", "backlog",
        f"({_HELD}) / on () group_left () (max(media_cluster_max_queue_length_jobs) > 0)",
        "{{ $labels.stream }} holds {{ $value | humanizePercentage }} of the jobs that SPLOOT_MAX_QUEUE_LENGTH allows. "
        "At 100 %, producers are refused: HTTP answers 503, and clients raise QueueFull.",
        "Backlog by state",
    ),
    "oldest_age": Query(
        "age", "backlog",
        f"max by (stream) (media_cluster_oldest_job_age_seconds{_IS_OTHER})",
        "The oldest job of {{ $labels.stream }} is {{ $value | humanizeDuration }} old: workers are that far behind.",
        "Oldest job",
    ),
    "recluster_age": Query(
        "recluster-age", "backlog",
        f"max by (stream) (media_cluster_oldest_job_age_seconds{_IS_RECLUSTER})",
        "The oldest recluster job is {{ $value | humanizeDuration }} old. Uploads are still assigned, but less well.",
        "Oldest job",
    ),
    "delayed": Query(
        "delayed", "backlog",
        f"max by (stream) (media_cluster_delayed_jobs{_IS_OTHER})",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} failed and wait for a retry.",
        "Backlog by state",
    ),
    "orphans": Query(
        "orphans", "backlog",
        "max by (stream) (media_cluster_orphaned_jobs)",
        "{{ $value | humanize }} jobs of {{ $labels.stream }} were delivered and are in no pending list. Workers "
        "requeue such jobs within seconds, so no worker takes this stream.",
        "Backlog by state",
    ),
    "ids_ahead": Query(
        "ids", "backlog",
        "max by (stream) (media_cluster_ids_ahead_seconds)",
        "The last entry id of {{ $labels.stream }} is ahead of the clock by {{ $value | humanizeDuration }}. A "
        "producer chose the id, or the server's clock was ahead. Jobs run as before; their ages are counted from the "
        "first sample that saw them.",
        "Oldest job",
    ),
    "exhausted": Query(
        "ids", "backlog",
        "max by (stream) (media_cluster_stream_exhausted)",
        "{{ $labels.stream }} has no further entry ids, because a producer used the greatest one. Every XADD fails, "
        "including those of workers and clients.",
        "Added and done",
    ),
    "vanished": Query(
        "vanished", "backlog",
        "round(max by (stream) (increase(media_cluster_entries_vanished_total[$window])))",
        "{{ $value | humanize }} jobs were removed from {{ $labels.stream }} in half an hour without being settled: "
        "by an XADD with MAXLEN or MINID, an XTRIM or an XDEL. They are lost unless their producers send them again.",
        "Added and done",
    ),
    "overdue": Query(
        "overdue", "backlog",
        "max by (stream) (media_cluster_overdue_jobs)",
        "Living workers hold {{ $value | humanize }} jobs of {{ $labels.stream }} beyond their time limit. Their "
        "threads hang, and the leases of these jobs do not expire.",
        "Overdue jobs",
    ),
    "dead_new": Query(
        "dead", "backlog",
        # A stream without earlier samples began without dead letters. After a gap in the samples, dead letters from
        # before the gap are not new.
        f"(max by (stream) ({_DEAD}) unless on (stream) present_over_time({_DEAD}[1h:1m] offset $window)"
        f" unless on (stream) (min by (stream) ({_first_seen(_DEAD)})"
        f" <= on () group_left () ({_watched_since('dead_new')} + 30)))"
        f" or (max by (stream) ({_DEAD}) - min by (stream) (min_over_time({_DEAD}[$window]) or"
        f' label_replace(max by (stream) (last_over_time({_DEAD}[1h:1m] offset $window)), "when", "before", "", "")))',
        "{{ $value | humanize }} jobs of {{ $labels.stream }} became dead letters in half an hour. Each shows its "
        "reason. Requeue them once the cause is fixed.",
        "Dead letters",
        (_watching("dead_new"),),
    ),
    "dead": Query(
        "dead-stock", "backlog",
        "max by (stream) (media_cluster_dead_letters)",
        "{{ $value | humanize }} dead letters of {{ $labels.stream }} need an operator.",
        "Dead letters",
    ),
    "dead_evicted": Query(
        "dead-evicted", "backlog",
        "round(max by (stream) (increase(media_cluster_dead_letters_evicted_total[$window])))",
        "{{ $value | humanize }} dead letters of {{ $labels.stream }} were deleted in half an hour, because the queue "
        "has too many. They were the only copy of failed jobs, and their producers must send them again.",
        "Dead letters",
    ),
    "quarantine_full": Query(
        "quarantine", "pods",
        "round(clamp_min(max(delta(cluster_media_overflowed[$window])), 0))",
        "{{ $value | humanize }} arrivals in half an hour found the quarantine of their pet full. A producer sends "
        "vectors of another model. Each arrival is a dead letter.",
        "Items by place",
    ),
    "sample_age": Query(
        "sample", "pods",
        "time() - max(media_cluster_backlog_sample_timestamp_seconds)",
        "The numbers of all queues are {{ $value | humanizeDuration }} old: alerts on them are blind.",
        "Sample age",
    ),
    "scheduler_age": Query(
        "scheduler", "pods",
        "time() - max(media_cluster_scheduler_tick_timestamp_seconds)",
        "The scheduler has sent no jobs for {{ $value | humanizeDuration }}; it sends them every minute.",
        "Sample age",
    ),
    "worker_down": Query(
        "workers", "pods",
        f"count by (instance) ({WORKERS} == 0)",
        "{{ $labels.instance }} does not answer scrapes.",
        "Workers",
    ),
    "workers_up": Query(
        "workers", "pods",
        f"count({WORKERS} == 1) or vector(0)",
        "No worker pod answers a scrape, so probably no job runs.",
        "Workers",
    ),
    "log_drops": Query(
        "logs", "pods",
        "round(sum(increase(cluster_log_lines_dropped_total[$window])))",
        "Workers dropped {{ $value | humanize }} log lines in ten minutes, because the reader of their log is slow or "
        "has stopped. Jobs continue.",
        "Dropped log lines",
    ),
    "unconserved": Query(
        "conservation",
        "pods",
        "max(cluster_pets_unconserved)",
        "For {{ $value | humanize }} pets, the items that arrived are not the sum of clustered, noise, quarantined and "
        "dismissed items.",
        "Pets that do not add up",
    ),
    "redis_unseen": Query(
        "redis", "pods",
        f"count({WORKERS} == 1)"
        ' unless on () max(media_cluster_backlog_sample_timestamp_seconds{job="sploot-cluster"})',
        "{{ $value | humanize }} worker pods answer scrapes, and none of them can read the queues from Redis.",
        "Workers",
    ),
    "redis_refuses": Query(
        "redis", "pods",
        # if Redis refuses reads too, MediaClusterRedisUnreachable is the alert
        "count(media_cluster_redis_writable == 0"
        " and on (job, instance) media_cluster_backlog_sample_timestamp_seconds)",
        "Redis refuses the writes of {{ $value | humanize }} processes: it or its disk is full, its replicas are gone, "
        "or it is a replica itself. No job is enqueued or finished; sploot-cluster doctor names the cause.",
        "Redis takes writes",
    ),
    "redis_memory": Query(
        "redis-memory", "pods",
        "max by (instance) (redis_memory_used_bytes / (redis_memory_max_bytes > 0))",
        "Redis at {{ $labels.instance }} uses {{ $value | humanizePercentage }} of its memory. When the memory is "
        "full, it refuses every write.",
        "Redis memory",
    ),
    "redis_evictions": Query(
        "redis-evictions", "pods",
        f"round(max by (instance) ({_new_of('redis_evictions')} or increase({_EVICTED}[$window])))",
        "Redis at {{ $labels.instance }} evicted {{ $value | humanize }} keys: jobs, pets or corrections are lost.",
        "Redis keys and evictions",
        _new("redis_evictions", _EVICTED, started="redis_start_time_seconds"),
    ),
}
# fmt: on


def rule_files(thresholds: Thresholds, panel_url: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Return the content of each rule file by its name.

    Args:
        panel_url: returns the address of the panel with a given title.
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
    """Return the name of the series that records a signal."""
    return f"media_cluster:{signal.name}" + (f":{signal.window}" if signal.window else "")


def promql_of(signal: Signal) -> str:
    """Return the PromQL of a signal."""
    return _over(signal, QUERIES[signal.name].promql)


def _over(signal: Signal, promql: str) -> str:
    """Return the PromQL with the signal's window filled in."""
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
                f"{{{{ $value | humanizePercentage }}}} of attempts failed in the last {burn.long}, and attempts "
                f"still fail. The objective is that {slo.objective:.0%} succeed over {slo.period}."
            ),
            "dashboard_url": panel_url,
        }
        rules.append(rule)
    return rules


def burn_promql(slo: Objective, long: str, short: str, limit: str) -> str:
    """Return PromQL that is true while both windows exceed the limit and enough attempts failed for a rate."""
    return (
        f"media_cluster:failure_ratio:{long} > {limit} and media_cluster:failure_ratio:{short} > {limit}"
        f" and media_cluster:failed:{long} >= {slo.least_failures}"
    )


def _alert(
    thresholds: Thresholds, name: str, notification: Notification, family: str, expr: str, hold: str = ""
) -> Rule:
    return {
        "alert": name,
        "expr": expr,
        **({"for": hold} if hold else {}),
        "labels": {"service": "sploot-cluster", "family": family, **notification.labels},
        "annotations": {
            "summary": notification.summary,
            "runbook_url": f"{thresholds.runbook_url}#{name.lower()}",
        },
    }
