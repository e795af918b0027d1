"""Retries: the documented table is the one that runs."""

from __future__ import annotations

import re
from dataclasses import replace

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, TimeLimit

from sploot_cluster.errors import (
    ClusterError,
    DimensionMismatch,
    InvalidInput,
    PetTooLarge,
    RevisionConflict,
    StoreUnavailable,
    UnknownCluster,
    UnreadablePet,
)
from tasks import contracts, retry_policy
from tasks.retry_policy import NEVER_RETRIED, POLICIES, RetryPolicy

MS = {"s": 1_000, "min": 60_000}


def as_ms(text: str) -> int:
    """Return the milliseconds of a time such as ``5 min``."""
    number, unit = text.split()
    return int(number) * MS[unit]


def documented() -> dict[str, RetryPolicy]:
    """Return the policies in the module's docstring."""
    lines = (retry_policy.__doc__ or "").splitlines()
    rules = [at for at, line in enumerate(lines) if line.startswith("====")]
    columns = [match.span() for match in re.finditer("=+", lines[rules[0]])]
    policies: dict[str, RetryPolicy] = {}
    policy: RetryPolicy | None = None
    for line in lines[rules[1] + 1 : rules[2]]:
        actor, retries, waits, limit = (line[start:end].strip() for start, end in columns[:4])
        if retries:
            shortest, longest = (as_ms(wait) for wait in waits.split(" to ")) if int(retries) else (0, 0)
            policy = RetryPolicy(int(retries), shortest, longest, time_limit_ms=as_ms(limit))
        if actor:
            assert policy is not None
            policies[actor] = policy
    return policies


def test_policy_table_in_the_docstring_matches_the_code() -> None:
    # without retries there are no waits
    running = {
        actor: policy if policy.max_retries else replace(policy, min_backoff_ms=0, max_backoff_ms=0)
        for actor, policy in POLICIES.items()
    }

    assert documented() == running


def test_every_actor_has_a_policy() -> None:
    actors = {
        contract.actor_name
        for contract in vars(contracts).values()
        if isinstance(getattr(contract, "actor_name", 0), str)
    }

    assert len(actors) == 9
    assert (
        actors | {contracts.EXPORT_PENDING_JOBS, contracts.EXPORT_STREAM_LAG, contracts.EXPORT_MEDIA_TOTALS}
        == POLICIES.keys()
    )


def test_policy_docstring_names_every_domain_error() -> None:
    docstring = retry_policy.__doc__ or ""

    for kind in (*NEVER_RETRIED, *ClusterError.__subclasses__()):
        assert f"``{kind.__name__}``" in docstring


def attempts_until_dead(error: Exception, policy: RetryPolicy) -> int:
    """Return how often an actor of this policy runs when it always fails this way."""
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
@pytest.mark.parametrize("actor", sorted(POLICIES))
def test_error_that_a_retry_cannot_fix_runs_once(actor: str, error: Exception) -> None:
    assert attempts_until_dead(error, POLICIES[actor]) == 1


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
def test_other_errors_are_retried_as_in_the_table(error: Exception) -> None:
    hurried = {
        actor: replace(policy, min_backoff_ms=1, max_backoff_ms=1)
        for actor, policy in POLICIES.items()
        if policy.max_retries
    }

    attempts = {actor: attempts_until_dead(error, policy) for actor, policy in hurried.items()}

    assert attempts == {actor: 1 + policy.max_retries for actor, policy in hurried.items()}
