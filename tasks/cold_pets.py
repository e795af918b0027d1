"""Cold pets in the processes: the store that reads them, and the periodic job that moves idle pets out of Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
    from sploot_cluster.store.cold.moves import ColdPets, Moved
    from sploot_cluster.store.cold.rounds import ColdRounds
    from tasks.settings import Settings

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


def build_cold_pets(
    settings: Settings, client: redis.Redis, *, on_move: Callable[[Moved], None] = lambda _: None
) -> ColdPets | None:
    """Return the cold pets of the Redis server, or None if no cold store is configured."""
    if not settings.cold_store:
        return None
    from sploot_cluster.store.cold.moves import ColdPets
    from sploot_cluster.store.cold.vectors import open_vectors

    return ColdPets(client, open_vectors(settings.cold_store), on_move=on_move)


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
