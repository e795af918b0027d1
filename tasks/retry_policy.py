"""Who is tried again, how often and when. One table, so that an operator finds every answer in one place.

Dramatiq waits ``min_backoff`` after the first failure and twice as long after each further one, up to ``max_backoff``,
each time shortened at random by up to half. After ``max_retries`` the message becomes a dead letter.

===================  ===========  ===============  ==========  ========================================================
actor                max_retries  waits            time limit  because
===================  ===========  ===============  ==========  ========================================================
cluster_embedding              8  1 s to 1 min           60 s  about two minutes in all: what fails is a lost race for
                                                               a busy pet or a failover, and both pass within seconds
merge_clusters                12  1 s to 5 min          120 s  about 20 minutes in all: a person has decided and will
split_cluster                                                  not look again; an operator can fix a full Redis in
exclude_media                                                  that time
dismiss_media
undo_feedback
restore_revision
recluster_pet                  5  5 s to 5 min         30 min  the next arrivals ask for another one; 50,000 media take
                                                               minutes on one core, which no limit must cut off
preview_recluster              2  1 s to 10 s          30 min  somebody waits for it, and asks again
export_pending_jobs            0  –                      10 s  the next sample is due in 10 s and makes up for this one
export_stream_lag
export_media_totals            0  –                      60 s  the next sample is due in a minute
===================  ===========  ===============  ==========  ========================================================

Never retried: ``InvalidInput`` and all below it, because the caller must change something; ``PetTooLarge``, because
waiting makes no pet smaller. Everything else is: ``RevisionConflict`` and ``StoreUnavailable`` pass by themselves,
``UnreadablePet`` may be of a newer release whose workers are just being rolled out, ``NotConserved`` and what nobody
foresaw deserve another try before a person looks at them. ``StalePreview`` and ``PetExists`` are raised to whoever
applies a preview or imports a pet, and in no job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import dramatiq
from dramatiq.broker import MessageProxy

from sploot_cluster.errors import InvalidInput, PetTooLarge
from tasks.contracts import (
    CLUSTER_EMBEDDING,
    DISMISS_MEDIA,
    EXCLUDE_MEDIA,
    EXPORT_MEDIA_TOTALS,
    EXPORT_PENDING_JOBS,
    EXPORT_STREAM_LAG,
    MERGE_CLUSTERS,
    PREVIEW_RECLUSTER,
    RECLUSTER_PET,
    RESTORE_REVISION,
    SPLIT_CLUSTER,
    UNDO_FEEDBACK,
)

NEVER_RETRIED: Final = (InvalidInput, PetTooLarge)

SECOND_MS, MINUTE_MS = 1_000, 60_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when one actor is tried again. Times are milliseconds.

    Attributes:
        time_limit_ms: a run that takes longer is interrupted and counts as failed. The interrupt waits for native code
            to return, so it is a net under a bug and no means of scheduling.
    """

    max_retries: int
    min_backoff_ms: int
    max_backoff_ms: int
    time_limit_ms: int

    def actor_options(self) -> dict[str, Any]:
        """As ``dramatiq.actor`` takes it."""
        return {
            "max_retries": self.max_retries,
            "min_backoff": self.min_backoff_ms,
            "max_backoff": self.max_backoff_ms,
            "time_limit": self.time_limit_ms,
            "throws": NEVER_RETRIED,
        }


_CORRECTION: Final = RetryPolicy(12, SECOND_MS, 5 * MINUTE_MS, time_limit_ms=2 * MINUTE_MS)
# never waits, whatever the back-off says
_SAMPLE: Final = RetryPolicy(0, SECOND_MS, SECOND_MS, time_limit_ms=10 * SECOND_MS)

POLICIES: Final[Mapping[str, RetryPolicy]] = {
    CLUSTER_EMBEDDING: RetryPolicy(8, SECOND_MS, MINUTE_MS, time_limit_ms=MINUTE_MS),
    MERGE_CLUSTERS: _CORRECTION,
    SPLIT_CLUSTER: _CORRECTION,
    EXCLUDE_MEDIA: _CORRECTION,
    DISMISS_MEDIA: _CORRECTION,
    UNDO_FEEDBACK: _CORRECTION,
    RESTORE_REVISION: _CORRECTION,
    RECLUSTER_PET: RetryPolicy(5, 5 * SECOND_MS, 5 * MINUTE_MS, time_limit_ms=30 * MINUTE_MS),
    PREVIEW_RECLUSTER: RetryPolicy(2, SECOND_MS, 10 * SECOND_MS, time_limit_ms=30 * MINUTE_MS),
    EXPORT_PENDING_JOBS: _SAMPLE,
    EXPORT_STREAM_LAG: _SAMPLE,
    EXPORT_MEDIA_TOTALS: RetryPolicy(0, SECOND_MS, SECOND_MS, time_limit_ms=MINUTE_MS),
}

# How much longer than its limit a job may run: the limit is told to a thread that may be in native code.
LIMIT_GRACE_S: Final = 60.0
LONGEST_LIMIT_MS: Final = max(policy.time_limit_ms for policy in POLICIES.values())


def limit_ms(message: dramatiq.Message[Any] | MessageProxy) -> float:
    """Return the time limit of a message, by its options and its actor's policy."""
    limit: object = message.options.get("time_limit")
    if isinstance(limit, int | float):
        return float(limit)
    return limit_of_actor_ms(message.actor_name)


def limit_of_actor_ms(actor: str) -> float:
    """Return the time limit of an actor's messages; of an unknown one, the longest that any has."""
    policy = POLICIES.get(actor)
    return float(policy.time_limit_ms if policy is not None else LONGEST_LIMIT_MS)
