"""The periodic job that moves the vectors of idle pets out of Redis, and its retries while the cold store is away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import dramatiq
import redis
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, TimeLimitExceeded

from sploot_cluster.errors import ColdStoreUnavailable, StoreUnavailable
from tasks.contracts import MOVE_COLD_PETS
from tasks.observe.periodic import every_minute
from tasks.observe.periodic_runs import recording_run
from tasks.retry_policy import POLICIES

if TYPE_CHECKING:
    from sploot_cluster.store.cold.rounds import ColdRounds

logger = logging.getLogger("sploot-cluster.queue")

# Priority of moves: they run after all other jobs of a worker, because a pet that was idle for days can wait.
PRIORITY: Final = 10


class WaitForColdStore(Middleware):
    """Middleware that retries jobs until the cold store is available again, so that none becomes a dead letter.

    Place it after ``Retries``; Dramatiq then calls it first. The waits between attempts still grow, up to the actor's
    ``max_backoff``.
    """

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.Message[Any] | MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if isinstance(exception, ColdStoreUnavailable):
            most = message.options.get("max_retries", POLICIES[message.actor_name].max_retries)
            message.options["retries"] = min(message.options.get("retries", 0), max(0, most - 1))


def declare_cold_actor(broker: dramatiq.Broker, rounds: ColdRounds, client: redis.Redis) -> None:
    """Declare ``move_cold_pets``, which periodiq sends every minute."""

    @every_minute(broker, MOVE_COLD_PETS, client, priority=PRIORITY)
    def move() -> None:
        try:
            with recording_run(client, MOVE_COLD_PETS):
                rounds.run()
        except (StoreUnavailable, redis.RedisError, TimeLimitExceeded):
            # the job does not fail, because the next run continues; failed moves are counted
            logger.warning("could not move cold pets", extra={"actor": MOVE_COLD_PETS}, exc_info=True)
