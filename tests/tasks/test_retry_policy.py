"""Retries: each actor is retried as its policy states, and never after an error that a retry cannot fix."""

from __future__ import annotations

from dataclasses import replace

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, TimeLimit

from sploot_cluster import errors
from sploot_cluster.errors import (
    ClusterError,
    ColdStoreUnavailable,
    DimensionMismatch,
    InvalidInput,
    NotConserved,
    PetClaimed,
    PetExists,
    PetIsCold,
    PetTooLarge,
    RevisionConflict,
    StalePreview,
    StoreUnavailable,
    UnknownCluster,
    UnreadablePet,
)
from tasks.contracts import QUEUE_OF
from tasks.retry_policy import NEVER_RETRIED, POLICIES, RetryPolicy

DISTINCT = list(dict.fromkeys(POLICIES.values()))


def test_every_actor_has_a_policy() -> None:
    assert POLICIES.keys() == QUEUE_OF.keys()


def test_every_domain_error_is_classified_as_retried_or_not_retried() -> None:
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClusterError)}
    never = {kind for kind in defined if issubclass(kind, NEVER_RETRIED)}
    retried = {
        *(RevisionConflict, PetClaimed, StoreUnavailable, ColdStoreUnavailable, PetIsCold, UnreadablePet, NotConserved)
    }
    not_raised_in_jobs = {PetExists, StalePreview}  # raised to the caller who imports a pet or applies a preview

    assert never == {kind for kind in defined if issubclass(kind, InvalidInput)} | {PetTooLarge}
    assert defined - never - {ClusterError} == retried | not_raised_in_jobs


def attempts_until_dead(error: Exception, policy: RetryPolicy) -> int:
    """Return how many times an actor with this policy runs if it always fails with this error."""
    broker = StubBroker(middleware=[Retries(), TimeLimit()])
    attempts = []

    def fail() -> None:
        attempts.append(error)
        raise error

    actor = dramatiq.actor(broker=broker, actor_name="fail", **policy.actor_options())(fail)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        actor.send()
        broker.join(actor.queue_name, timeout=20_000, fail_fast=False)
        worker.join()
    finally:
        worker.stop()
        broker.close()
    assert [dead_letter.actor_name for dead_letter in broker.dead_letters] == ["fail"]
    return len(attempts)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("pet_id", "is missing", "send it"),
        UnknownCluster(pet=42, cluster=7),
        DimensionMismatch(pet=42, expected=512, got=768),
        PetTooLarge(pet=42, n_media=262_144),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_a_retry_cannot_fix_runs_once(error: Exception) -> None:
    assert [attempts_until_dead(error, policy) for policy in DISTINCT] == [1] * len(DISTINCT)


@pytest.mark.parametrize(
    "error",
    [
        RevisionConflict(pet=42, expected=1, current=2),
        StoreUnavailable(doing="load pet 42", problem="it is away"),
        UnreadablePet(pet=42, problem="format 2"),
        RuntimeError("nobody foresaw it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_retried_as_the_policy_table_states(error: Exception) -> None:
    hurried = [replace(policy, min_backoff_ms=1, max_backoff_ms=1) for policy in DISTINCT if policy.max_retries]

    attempts = [attempts_until_dead(error, policy) for policy in hurried]

    assert attempts == [1 + policy.max_retries for policy in hurried]
