"""Translation of Redis errors to ``QueueUnavailable`` with the cause, for every use of the queues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dramatiq.errors import BrokerConnectionError

from sploot_cluster.jobs import QueueUnavailable
from sploot_cluster.refusals import REDIS_ERRORS, explained, refusal_of


@contextmanager
def reaching_redis(outcome: str = "nothing was changed") -> Iterator[None]:
    """Raise ``QueueUnavailable`` if Redis does not answer in this block, or refuses a command.

    Args:
        outcome: what the failure means for the caller, for the text of the error.
    """
    try:
        yield
    except (*REDIS_ERRORS, BrokerConnectionError) as error:
        raise QueueUnavailable(explained(error, outcome=outcome), refusal=refusal_of(error)) from error
