"""The retries of each actor: how often and when. All of them are in one table, ``POLICIES``.

Dramatiq waits ``min_backoff`` after the first failure and twice as long after each further one, up to ``max_backoff``;
each wait is shortened at random by up to half. After ``max_retries`` the message becomes a dead letter.

Two kinds of error are never retried: ``InvalidInput`` and its subclasses, because the caller must change something, and
``PetTooLarge``, because waiting makes no pet smaller. All others are retried: ``RevisionConflict`` and
``StoreUnavailable`` pass with time, ``UnreadablePet`` may be due to data from a newer release in a rollout, and
``NotConserved`` and unforeseen errors get further attempts before an operator has to act. Failures because the cold
store does not answer do not count towards the limit (``tasks.cold_pets``). ``StalePreview`` and ``PetExists`` are never
raised in a job, only when a caller applies a preview or imports a pet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import dramatiq
from dramatiq.broker import MessageProxy

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.errors import InvalidInput, PetTooLarge
from tasks.contracts import (
    CLUSTER_EMBEDDING,
    DELETE_ITEMS,
    EXPORT_MEDIA_TOTALS,
    EXPORT_PENDING_JOBS,
    EXPORT_STREAM_LAG,
    MOVE_COLD_PETS,
    PREVIEW_RECLUSTER,
    RECLUSTER_PET,
)

NEVER_RETRIED: Final = (InvalidInput, PetTooLarge)

SECOND_MS, MINUTE_MS = 1_000, 60_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when one actor is retried. Times are in milliseconds.

    Attributes:
        time_limit_ms: a run that takes longer is interrupted and counts as failed. The interrupt waits for native code
            to return, so it is a safety net against bugs, not a means of scheduling.
    """

    max_retries: int
    min_backoff_ms: int
    max_backoff_ms: int
    time_limit_ms: int

    def actor_options(self) -> dict[str, Any]:
        """Return the policy as options of ``dramatiq.actor``."""
        return {
            "max_retries": self.max_retries,
            "min_backoff": self.min_backoff_ms,
            "max_backoff": self.max_backoff_ms,
            "time_limit": self.time_limit_ms,
            "throws": NEVER_RETRIED,
        }


# About 20 minutes in all, so that an operator has time to free memory if Redis is full. The labeller will not notice a
# failure and try again.
_CORRECTION: Final = RetryPolicy(12, SECOND_MS, 5 * MINUTE_MS, time_limit_ms=2 * MINUTE_MS)
# The next sample is due in 10 s and replaces this one. Without retries, the back-off has no effect.
_SAMPLE: Final = RetryPolicy(0, SECOND_MS, SECOND_MS, time_limit_ms=10 * SECOND_MS)

POLICIES: Final[Mapping[str, RetryPolicy]] = {
    # about two minutes in all: failures are lost races for a busy pet, or a failover; both pass within seconds
    CLUSTER_EMBEDDING: RetryPolicy(8, SECOND_MS, MINUTE_MS, time_limit_ms=MINUTE_MS),
    **{request.actor_name: _CORRECTION for request in VERBS.values()},
    # after a failure, the next arrivals request another recluster; with 50,000 items, one takes minutes on one core and
    # must not be interrupted
    RECLUSTER_PET: RetryPolicy(5, 5 * SECOND_MS, 5 * MINUTE_MS, time_limit_ms=30 * MINUTE_MS),
    # a user waits for the preview and can request it again
    PREVIEW_RECLUSTER: RetryPolicy(2, SECOND_MS, 10 * SECOND_MS, time_limit_ms=30 * MINUTE_MS),
    # retried as often as a correction; copying a big pet on a busy server takes a minute or two
    DELETE_ITEMS: RetryPolicy(12, SECOND_MS, 5 * MINUTE_MS, time_limit_ms=30 * MINUTE_MS),
    EXPORT_PENDING_JOBS: _SAMPLE,
    EXPORT_STREAM_LAG: _SAMPLE,
    # the next sample is due in a minute
    EXPORT_MEDIA_TOTALS: RetryPolicy(0, SECOND_MS, SECOND_MS, time_limit_ms=MINUTE_MS),
    # the next run continues in a minute
    MOVE_COLD_PETS: RetryPolicy(0, SECOND_MS, SECOND_MS, time_limit_ms=MINUTE_MS),
}

# How far a job may exceed its limit: native code delays the interrupt.
LIMIT_GRACE_S: Final = 60.0
LONGEST_LIMIT_MS: Final = max(policy.time_limit_ms for policy in POLICIES.values())


def limit_ms(message: dramatiq.Message[Any] | MessageProxy) -> float:
    """Return the time limit of a message, from its options or its actor's policy."""
    limit: object = message.options.get("time_limit")
    if isinstance(limit, int | float):
        return float(limit)
    return limit_of_actor_ms(message.actor_name)


def limit_of_actor_ms(actor: str) -> float:
    """Return the time limit of an actor's messages, or the longest limit of all for an unknown actor."""
    policy = POLICIES.get(actor)
    return float(policy.time_limit_ms if policy is not None else LONGEST_LIMIT_MS)
