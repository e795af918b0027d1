"""The rows, panels and queries of the dashboard; ``dashboard.py`` turns them into Grafana's JSON.

The four rows of the specification come first, in its order. A panel with a signal draws the levels of its alerts and
links to their sections in the runbook. ``$job`` and ``$stream`` are variables of the dashboard. All pods report the
same samples of the queues, so queries use ``max by (stream)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ops.thresholds import thresholds
from tasks.observe.metrics import OPERATIONS

Kind = Literal["stat", "gauge", "series", "heatmap", "table"]

PER_MINUTE: Final = "suffix: /min"
FAILED: Final = 'outcome!="success"'
BUDGET: Final = f"{1 - thresholds().slo.objective:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        id: permanent and never reused, because alerts link to it.
        queries: PromQL and legend of each query.
        unit: Grafana's name for the unit.
        signal: the signal of ``thresholds.yaml`` whose levels are drawn.
        logs: a LogQL filter on parsed fields, for the job log lines that belong to the panel.
        is_of_now: whether the queries are evaluated once, at the end of the displayed time range.
        colours: fixed colours of series, by legend.
        good_above: a tile is green from this value on, and red below.
        bad_above: a tile is red above this value, and green up to it.
    """

    id: int
    title: str
    description: str
    queries: tuple[tuple[str, str], ...]
    kind: Kind = "series"
    width: int = 12
    height: int = 8
    unit: str = "short"
    decimals: int | None = None
    signal: str = ""
    logs: str = ""
    is_stacked: bool = False
    is_of_now: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)
    good_above: float | None = None
    bad_above: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A title and its panels, from left to right and line by line."""

    title: str
    panels: tuple[Panel, ...]


def _jobs(selector: str = "", window: str = "$__rate_interval", function: str = "rate") -> str:
    matchers = ", ".join(part for part in (selector, 'job=~"$job"') if part)
    return f"{function}(cluster_jobs_total{{{matchers}}}[{window}])"


def _feedback(selector: str, window: str = "$__range", function: str = "increase") -> str:
    matchers = ", ".join(part for part in (selector, 'job=~"$job"') if part)
    return f"{function}(cluster_feedback_operations_total{{{matchers}}}[{window}])"


def _of_streams(metric: str) -> str:
    return f'max by (stream) ({metric}{{stream=~"$stream"}})'


def _quantile(q: float) -> str:
    buckets = 'cluster_job_duration_seconds_bucket{job=~"$job"}'
    return f"histogram_quantile({q}, sum by (backend, le) (rate({buckets}[$__rate_interval])))"


_WAITING: Final = f"sum({_of_streams('media_cluster_undelivered_jobs')})"
_SUCCESS: Final = 'outcome="success"'
_DONE: Final = f"sum({_jobs(_SUCCESS)})"

OUTCOMES: Final = Row(
    "Outcomes Overview",
    (
        Panel(
            id=1,
            title="Successful jobs",
            is_of_now=True,
            description="Attempts that succeeded in the displayed time range.",
            kind="stat",
            width=4,
            height=5,
            decimals=0,
            queries=((f"sum({_jobs(_SUCCESS, '$__range', 'increase')})", "success"),),
            good_above=0,
        ),
        Panel(
            id=2,
            title="Failed jobs",
            is_of_now=True,
            description="Attempts that failed in the displayed time range: error (retried), invalid (not retried) or "
            "timeout.",
            kind="stat",
            width=4,
            height=5,
            decimals=0,
            queries=((f"sum({_jobs(FAILED, '$__range', 'increase')})", "failed"),),
            bad_above=0,
            logs=f"{FAILED}",
        ),
        Panel(
            id=3,
            title="Success ratio",
            is_of_now=True,
            description="Share of attempts that succeeded. The objective is 99 % over 30 days.",
            kind="stat",
            width=4,
            height=5,
            unit="percentunit",
            decimals=2,
            queries=(
                (
                    f"sum({_jobs(_SUCCESS, '$__range', 'increase')}) / sum({_jobs('', '$__range', 'increase')})",
                    "ratio",
                ),
            ),
            good_above=0.99,
        ),
        Panel(
            id=4,
            title="Noise count",
            description="Items that the last recluster, of any pet, left in no cluster. Fewer than 15 are normal. "
            "Three reclusters in a row above 30 alert in Slack.",
            kind="gauge",
            width=4,
            height=5,
            queries=(('max(cluster_last_noise_count{job=~"$job"})', "noise"),),
            signal="noise_count",
            logs='actor="recluster_pet"',
        ),
        Panel(
            id=5,
            title="Noisy reclusters in a row",
            description="Reclusters in a row, of all pets together, that left more than 30 items in no cluster.",
            kind="stat",
            width=4,
            height=5,
            queries=(('max(cluster_noise_high_streak{job=~"$job"})', "runs"),),
            signal="noise",
            logs='actor="recluster_pet"',
        ),
        Panel(
            id=6,
            title="Alerts firing",
            is_of_now=True,
            description="Number of alerts of this pipeline that fire now. The table below lists them.",
            kind="stat",
            width=4,
            height=5,
            queries=(('count(ALERTS{alertstate="firing", service="sploot-cluster"}) or vector(0)', "alerts"),),
            bad_above=0,
        ),
        Panel(
            id=7,
            title="Jobs by outcome and backend",
            is_of_now=True,
            description="Attempts in the displayed time range, by outcome and backend.",
            kind="table",
            height=7,
            queries=((f"sort_desc(sum by (outcome, backend) ({_jobs('', '$__range', 'increase')}) > 0)", ""),),
            decimals=0,
        ),
        Panel(
            id=8,
            title="Firing alerts",
            is_of_now=True,
            description="Every alert of this pipeline that fires now. The runbook has a section with its name.",
            kind="table",
            height=7,
            queries=(
                (
                    "sort_desc(count by (alertname, severity, stream, backend)"
                    ' (ALERTS{alertstate="firing", service="sploot-cluster"}))',
                    "",
                ),
            ),
        ),
    ),
)

THROUGHPUT: Final = Row(
    "Throughput & Latency",
    (
        Panel(
            id=10,
            title="Job throughput",
            description="Attempts per minute. More than one failure per minute alerts in Slack and pages after five "
            "minutes. More than three page at once.",
            unit=PER_MINUTE,
            queries=((f"{_DONE} * 60", "success/min"), (f"sum({_jobs(FAILED)}) * 60", "failures/min")),
            signal="failures",
            colours={"success/min": "green", "failures/min": "red"},
            logs=f"{FAILED}",
        ),
        Panel(
            id=11,
            title="Job duration",
            description="Duration of attempts by backend, without waiting time. If only p95 is high, a few jobs are "
            "slow. If p50 is high too, all jobs are slow.",
            unit="s",
            queries=(
                (_quantile(0.5), "p50 backend_used={{backend}}"),
                (_quantile(0.95), "p95 backend_used={{backend}}"),
                (_quantile(0.99), "p99 backend_used={{backend}}"),
            ),
            signal="latency",
            logs="duration_ms > 5000",
        ),
        Panel(
            id=12,
            title="Duration heatmap",
            description="Attempts by duration. The two bands are two kinds of jobs: arrivals and reclusters.",
            kind="heatmap",
            unit="s",
            queries=(
                (
                    'sum by (le) (increase(cluster_job_duration_seconds_bucket{job=~"$job"}[$__rate_interval]))',
                    "{{le}}",
                ),
            ),
        ),
        Panel(
            id=13,
            title="Failures by kind",
            description="error: retried. invalid: a field cannot be used; a dead letter at once. timeout: interrupted.",
            unit=PER_MINUTE,
            queries=(
                (
                    f"sum by (outcome, backend) ({_jobs(FAILED)}) * 60",
                    "{{outcome}} backend_used={{backend}}",
                ),
            ),
            is_stacked=True,
            logs=f"{FAILED}",
        ),
        Panel(
            id=14,
            title="Retries",
            description="Failed attempts per minute that will be retried, by actor.",
            unit=PER_MINUTE,
            queries=(
                ('sum by (actor) (rate(cluster_job_retries_total{job=~"$job"}[$__rate_interval])) * 60', "{{actor}}"),
            ),
            signal="retries",
            logs="attempt > 1",
        ),
        Panel(
            id=15,
            title="Backend fallbacks",
            description="Jobs per minute that ran on another backend than they wanted. Results are identical, only "
            "slower. If hdbscan_gpu was wanted, check the GPU nodes.",
            unit=PER_MINUTE,
            queries=(
                (
                    'sum by (wanted, used) (rate(cluster_backend_fallbacks_total{job=~"$job"}[$__rate_interval])) * 60',
                    "wanted={{wanted}} backend_used={{used}}",
                ),
            ),
            signal="fallbacks",
        ),
    ),
)

FEEDBACK: Final = Row(
    "Feedback Activity",
    (
        Panel(
            id=20,
            title="Feedback operations",
            description="Corrections per minute, by operation and outcome. Any failed correction pages.",
            unit=PER_MINUTE,
            queries=(
                (
                    f"sum by (operation, outcome) ({_feedback('', '$__rate_interval', 'rate')}) * 60",
                    "{{operation}} {{outcome}}",
                ),
            ),
            logs=f'actor=~"{"|".join(OPERATIONS)}"',
        ),
        *(
            Panel(
                id=id_,
                title=title,
                description=f"{title} in the displayed time range. A restart of a worker does not reduce the number.",
                kind="stat",
                is_of_now=True,
                width=3,
                decimals=0,
                queries=((f"sum({_feedback(selector)})", legend),),
                bad_above=bad_above,
                good_above=None if bad_above is not None else 0,
            )
            for id_, title, selector, legend, bad_above in (
                (21, "Merges", f'operation="merge", {_SUCCESS}', "merges", None),
                (22, "Splits", f'operation="split", {_SUCCESS}', "splits", None),
                (23, "Undos", f'operation="undo", {_SUCCESS}', "undos", None),
                (24, "Failed corrections", FAILED, "failed", 0.0),
            )
        ),
    ),
)

BACKLOG: Final = Row(
    "Backlog",
    (
        *(
            Panel(
                id=id_,
                title=title,
                description=description,
                kind="stat",
                width=4,
                height=4,
                unit=unit,
                queries=((promql, title.lower()),),
                signal=signal,
                bad_above=bad_above,
            )
            for id_, title, description, promql, unit, signal, bad_above in (
                (
                    30,
                    "Undelivered",
                    "Jobs that wait for a worker.",
                    _WAITING,
                    "short",
                    "undelivered",
                    None,
                ),
                (
                    31,
                    "In flight",
                    "Jobs that workers hold.",
                    f"sum({_of_streams('media_cluster_pending_jobs')})",
                    "short",
                    "pending",
                    None,
                ),
                (
                    32,
                    "Delayed",
                    "Jobs that are not due yet: retries, and reclusters that wait for more items.",
                    f"sum({_of_streams('media_cluster_delayed_jobs')})",
                    "short",
                    "",
                    None,
                ),
                (
                    33,
                    "Orphaned",
                    "Delivered jobs in no pending list. Workers requeue them within seconds.",
                    f"sum({_of_streams('media_cluster_orphaned_jobs')})",
                    "short",
                    "",
                    0.0,
                ),
                (
                    34,
                    "Dead",
                    "Jobs that failed permanently and need an operator: sploot-cluster queue dead list.",
                    f"sum({_of_streams('media_cluster_dead_letters')})",
                    "short",
                    "dead",
                    None,
                ),
                (
                    35,
                    "Time to drain",
                    "Time to finish the undelivered jobs at the current rate. Infinite: no job finishes.",
                    f"({_WAITING} / ({_DONE} > 0)) or (({_WAITING} > 0) * Inf) or ({_WAITING} * 0)",
                    "s",
                    "oldest_age",
                    None,
                ),
            )
        ),
        Panel(
            id=36,
            title="Pending jobs",
            description="Jobs that workers hold, as XPENDING counts them. The maximum is prefetch times workers. "
            "Jobs that wait are in Backlog by state.",
            queries=((_of_streams("media_cluster_pending_jobs"), "{{stream}}"),),
            signal="pending",
        ),
        Panel(
            id=37,
            title="Stream lag",
            description="Time for which the oldest pending job has been held. A healthy job of five seconds shows five "
            "seconds. Reclusters may take minutes and have their own alert.",
            unit="s",
            queries=((_of_streams("media_cluster_stream_lag_seconds"), "{{stream}}"),),
            signal="lag",
        ),
        Panel(
            id=38,
            title="Backlog by state",
            colours={
                "undelivered": "orange",
                "in flight": "blue",
                "delayed": "yellow",
                "orphaned": "red",
            },
            description="All streams together. Every unfinished job is in exactly one of these states.",
            is_stacked=True,
            queries=tuple(
                (f"sum({_of_streams(f'media_cluster_{metric}')})", legend)
                for metric, legend in (
                    ("undelivered_jobs", "undelivered"),
                    ("pending_jobs", "in flight"),
                    ("delayed_jobs", "delayed"),
                    ("orphaned_jobs", "orphaned"),
                )
            ),
        ),
        Panel(
            id=39,
            title="Oldest job",
            description="Time since the oldest unfinished job was added: how far behind the workers are.",
            unit="s",
            queries=((_of_streams("media_cluster_oldest_job_age_seconds"), "{{stream}}"),),
            signal="oldest_age",
        ),
        Panel(
            id=40,
            title="Added and done",
            description="Jobs added per minute, including due retries, attempts that ended, and jobs that were "
            "cancelled. If added is above the other two, the backlog grows.",
            unit=PER_MINUTE,
            queries=(
                (
                    'sum(max by (stream) (rate(media_cluster_entries_added_total{stream=~"$stream",'
                    ' stream!="streams:cluster.maintenance"}[$__rate_interval]))) * 60',
                    "added/min",
                ),
                (f"sum({_jobs()}) * 60", "done/min"),
                (
                    'sum(max by (stream) (rate(media_cluster_cancelled_jobs_total{stream=~"$stream",'
                    ' stream!="streams:cluster.maintenance"}[$__rate_interval]))) * 60',
                    "cancelled/min",
                ),
            ),
            colours={"added/min": "blue", "done/min": "green", "cancelled/min": "purple"},
        ),
        Panel(
            id=41,
            title="Dead letters",
            description="Jobs that failed permanently, by stream, and those that were deleted because of their number. "
            "New dead letters alert in Slack for half an hour.",
            queries=(
                (_of_streams("media_cluster_dead_letters"), "{{stream}}"),
                (
                    'sum(max by (stream) (increase(media_cluster_dead_letters_evicted_total{stream=~"$stream"}'
                    "[$__rate_interval])))",
                    "deleted because there are too many",
                ),
            ),
            signal="dead",
        ),
    ),
)

OBJECTIVE: Final = Row(
    "Service Objective",
    (
        Panel(
            id=50,
            title="Error budget left",
            is_of_now=True,
            description="Remaining share of the error budget: 1 % of attempts may fail in 30 days. Below zero, the "
            "objective is missed.",
            kind="stat",
            width=6,
            unit="percentunit",
            decimals=1,
            queries=(
                (
                    f"1 - (sum({_jobs(FAILED, '30d', 'increase')}) / sum({_jobs('', '30d', 'increase')})) / {BUDGET}",
                    "left",
                ),
            ),
            good_above=0.25,
        ),
        Panel(
            id=51,
            title="Error budget burn rate",
            description="How many times faster than allowed the budget burns. At 1, it lasts exactly 30 days. An alert "
            "fires when both its long and its short window are above its line.",
            width=18,
            unit="suffix: x",
            queries=tuple(
                (f"media_cluster:failure_ratio:{window} / {BUDGET}", f"over {window}")
                for window in ("5m", "1h", "6h", "3d")
            ),
            signal="slo",
        ),
    ),
)

WORKERS: Final = Row(
    "Workers & Scheduler",
    (
        Panel(
            id=60,
            title="Workers",
            description="Pods that answer scrapes, and pods that Prometheus knows.",
            width=8,
            queries=(('sum(up{job=~"$job"})', "answering"), ('count(up{job=~"$job"})', "known")),
            signal="workers_up",
        ),
        Panel(
            id=61,
            title="Saturation",
            description="Share of worker threads that run a job. At 100 % for long, more workers are needed.",
            width=8,
            unit="percentunit",
            queries=(
                (
                    'sum(cluster_jobs_in_progress{job=~"$job"}) / sum(cluster_worker_threads{job=~"$job"})',
                    "threads at work",
                ),
            ),
        ),
        Panel(
            id=62,
            title="Sample age",
            description="Age of the backlog numbers, and time since the scheduler sent its jobs. If the sample is "
            "old, do not trust the row Backlog.",
            width=8,
            unit="s",
            queries=(
                ("time() - max(media_cluster_backlog_sample_timestamp_seconds)", "sample"),
                ("time() - max(media_cluster_scheduler_tick_timestamp_seconds)", "scheduler"),
                ("time() - max(cluster_media_sample_timestamp_seconds)", "items counted"),
            ),
            signal="sample_age",
        ),
        Panel(
            id=63,
            title="Overdue jobs",
            description="Jobs that living workers hold for a minute or more beyond their time limit: their threads "
            "hang. sploot-cluster queue status shows which workers.",
            queries=((_of_streams("media_cluster_overdue_jobs"), "{{stream}}"),),
            signal="overdue",
        ),
        Panel(
            id=64,
            title="Dropped log lines",
            description="Log lines that workers dropped because the reader of their log was slow or had stopped. Jobs "
            "continue meanwhile.",
            queries=(('sum(increase(cluster_log_lines_dropped_total{job=~"$job"}[$__rate_interval]))', "lines"),),
            signal="log_drops",
        ),
    ),
)

MEDIA: Final = Row(
    "Media",
    (
        Panel(
            id=80,
            title="Items by place",
            description="Items of all pets: in a cluster, noise, quarantined (another model than their pet's), or "
            "dismissed by a user.",
            queries=(('max by (outcome) (cluster_media{job=~"$job"})', "{{outcome}}"),),
            is_stacked=True,
            colours={"clustered": "green", "noise": "yellow", "quarantined": "red", "dismissed": "purple"},
        ),
        Panel(
            id=81,
            title="Items ingested",
            description="All items that ever arrived, of all pets. The places in the panel on the left add up to it.",
            kind="stat",
            width=3,
            queries=(('max(cluster_media_ingested{job=~"$job"})', "items"),),
        ),
        Panel(
            id=82,
            title="Pets that do not add up",
            description="Pets with more or fewer items than arrived. Above 0, keys were changed by hand, or there is a "
            "bug. sploot-cluster tally names the pets.",
            kind="stat",
            width=3,
            queries=(('max(cluster_pets_unconserved{job=~"$job"})', "pets"),),
            bad_above=0,
            signal="unconserved",
        ),
        Panel(
            id=83,
            title="Pets",
            description="Pets with at least one item.",
            kind="stat",
            width=3,
            queries=(('max(cluster_pets{job=~"$job"})', "pets"),),
        ),
        Panel(
            id=84,
            title="Ingest rollout",
            description="Share of pets whose uploads are accepted: SPLOOT_INGEST_ROLLOUT_PERCENT.",
            kind="stat",
            width=3,
            unit="percent",
            queries=(('min(cluster_ingest_rollout_percent{job=~"$job"})', "rollout"),),
        ),
    ),
)

REDIS: Final = Row(
    "Redis",
    (
        Panel(
            id=70,
            title="Redis memory",
            description="Used memory and maxmemory; 0 means unlimited. When the memory is full, Redis refuses every "
            "write. The dashed lines are the levels of the alerts.",
            width=6,
            unit="bytes",
            queries=(
                ("max by (instance) (redis_memory_used_bytes)", "used {{instance}}"),
                ("max by (instance) (redis_memory_max_bytes)", "limit {{instance}}"),
                *(
                    (f"{level:g} * max(redis_memory_max_bytes > 0)", severity)
                    for severity, level in thresholds().signals["redis_memory"].lines()
                ),
            ),
            colours={"warning": "orange", "critical": "red"},
        ),
        Panel(
            id=71,
            title="Redis keys and evictions",
            description="Keys of all databases. Evictions lose jobs or pets: maxmemory-policy must be noeviction.",
            width=6,
            queries=(
                ("sum by (instance) (redis_db_keys)", "keys {{instance}}"),
                ("sum by (instance) (increase(redis_evicted_keys_total[$__rate_interval]))", "evicted {{instance}}"),
            ),
        ),
        Panel(
            id=72,
            title="Redis clients",
            description="Connected and blocked clients. Every consumer that waits for jobs is a blocked client.",
            width=6,
            queries=(
                ("sum by (instance) (redis_connected_clients)", "connected {{instance}}"),
                ("sum by (instance) (redis_blocked_clients)", "blocked {{instance}}"),
            ),
        ),
        Panel(
            id=73,
            title="Redis takes writes",
            description="1 if Redis accepted a write of this process during the scrape, 0 if it refused: it or its "
            "disk is full, its replicas are gone, or it is a replica itself. No sample: Redis did not answer.",
            width=6,
            queries=(("min by (job, instance) (media_cluster_redis_writable)", "{{job}} {{instance}}"),),
        ),
    ),
)

ROWS: Final = (OUTCOMES, THROUGHPUT, FEEDBACK, BACKLOG, OBJECTIVE, WORKERS, MEDIA, REDIS)
