"""Rounds over all pets, which move the vectors of idle pets to the cold store. A round consists of short runs.

key                 type    holds                                                                       ends
sploot:cold:round   string  cursor in the list of pets at which the next run continues; 0: round done   after an hour
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

import redis

from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.cold.moves import ColdPets

logger = logging.getLogger(__name__)

ROUND: Final = "sploot:cold:round"

# Maximum time for which one run checks and moves pets; a round that takes longer continues in the next run.
BUDGET_S: Final = 20.0
# Pause between rounds. It may be long, because pets become cold only after days.
PAUSE_MS: Final = 60 * 60 * 1000
# Maximum number of pets whose unused objects one run deletes.
TIDIED_PER_RUN: Final = 100

DAY_MS: Final = 24 * 60 * 60 * 1000


class Run(NamedTuple):
    """The result of a run: the number of pets moved out, and whether the round is complete."""

    n_moved: int
    is_last: bool


class ColdRounds:
    """Rounds over all pets of a Redis server. Safe to run in several processes: only one of them moves a given pet."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        cold: ColdPets,
        pets_page: Callable[[int], tuple[int, Sequence[PetId]]],
        *,
        idle_days: int,
        budget_s: float = BUDGET_S,
    ) -> None:
        """
        Args:
            pets_page: returns some of the pets and the next cursor, like ``PetStore.pets_page``.
            idle_days: number of days without a commit after which a pet is moved out.
            budget_s: maximum time of a run, in addition to its last move.
        """
        self._client, self._cold, self._pets_page = client, cold, pets_page
        self._idle_ms, self._budget_s = idle_days * DAY_MS, budget_s

    def run(self) -> Run:
        """Continue the round: delete unused objects, and move idle pets out until the time is used up.

        Errors from redis-py propagate.

        Raises:
            ColdStoreUnavailable: the storage does not answer; the next run continues the round.
        """
        until = time.monotonic() + self._budget_s
        self._cold.tidy(limit=TIDIED_PER_RUN)
        stored = cast("bytes | None", self._client.get(ROUND))
        if stored == b"0":
            return Run(0, is_last=True)
        cursor, n_moved = int(stored or 0), 0
        while True:
            following, page = self._pets_page(cursor)
            for pet, idle_ms in zip(page, self._cold.idle_ms(page), strict=True):
                if idle_ms < self._idle_ms:
                    continue
                if time.monotonic() >= until:
                    # the next run reads this page again, without the moved pets, which no longer count as idle
                    self._client.set(ROUND, cursor, px=PAUSE_MS) if cursor else self._client.delete(ROUND)
                    return Run(n_moved, is_last=False)
                n_moved += self._moved(pet)
            cursor = following
            if not cursor or time.monotonic() >= until:
                self._client.set(ROUND, cursor, px=PAUSE_MS)
                return Run(n_moved, is_last=not cursor)

    def _moved(self, pet: PetId) -> bool:
        try:
            return self._cold.move_out(pet)
        except UnreadablePet:
            logger.warning("damaged pet stays in Redis", extra={"pet_id": pet}, exc_info=True)
            return False
