"""Noise of reclusters, counted in Redis: the last count, and the number of consecutive high counts.

    key            type  holds
    sploot:noise   hash  last_count               noise of the last recluster of any pet
                         streak_of_all            consecutive reclusters of any pets above HIGH_NOISE
                         high_streak              that streak, or the longest one of a single pet
                         at_ms                    time of the last recluster (server's clock)
    sploot:noise:streaks:{sploot:noise} zset       pet, scored by its consecutive noisy reclusters, if there are any
    sploot:noise:seen:{sploot:noise} zset          the same pets, scored by the time of their last noisy one;
                                                   kept for a day

``sploot:noise`` does not expire; the next recluster overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import redis

from sploot_cluster.settings import ClusterSettings

NOISE: Final = "sploot:noise"
# in the same slot as NOISE, because one script uses all three keys
STREAKS_OF_PETS: Final = f"{NOISE}:streaks:{{{NOISE}}}"
NOISY_PETS: Final = f"{NOISE}:seen:{{{NOISE}}}"
STREAK_KEPT_MS: Final = 24 * 3_600_000

HIGH_NOISE: Final = 30  # maximum number of noise items at which a recluster is not noisy

# KEYS 1 sploot:noise, 2 and 3 the keys of streaks by pet; ARGV 1 noise count, 2 highest acceptable count, 3 pet or '',
# 4 its highest acceptable count, 5 ms for which the streak of a pet is kept. Without a noise count, the pet's streak is
# deleted. Returns the longest streak. One script, because two reclusters that finish at the same time must both count.
_NOTE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local noise = tonumber(ARGV[1])
local of_all = tonumber(redis.call('HGET', KEYS[1], 'streak_of_all') or '0')
local function forget(pet)
  redis.call('ZREM', KEYS[2], pet)
  redis.call('ZREM', KEYS[3], pet)
end
if noise then
  of_all = noise > tonumber(ARGV[2]) and of_all + 1 or 0
  redis.call('HSET', KEYS[1], 'last_count', ARGV[1], 'streak_of_all', of_all, 'at_ms', now)
end
if ARGV[3] ~= '' then
  if noise and noise > tonumber(ARGV[4]) then
    redis.call('ZINCRBY', KEYS[2], 1, ARGV[3])
    redis.call('ZADD', KEYS[3], now, ARGV[3])
  else
    forget(ARGV[3])
  end
end
for _, pet in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5], 'LIMIT', 0, 100)) do
  forget(pet)
end
local longest = redis.call('ZRANGE', KEYS[2], 0, 0, 'REV', 'WITHSCORES')
local streak = math.max(of_all, tonumber(longest[2] or '0'))
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'high_streak', streak)
end
return streak
"""


class NoiseWatch:
    """A counter of consecutive reclusters that left too many items as noise, for each pet and across all pets.

    A large pet may leave more than ``HIGH_NOISE`` items within its noise budget. So in the streak of that pet, only
    counts above the budget are high.
    """

    def __init__(self, client: redis.Redis, *, budget: Callable[[int], int] | None = None) -> None:
        """Args: ``budget`` returns the noise budget for a number of items; by default, the default settings apply."""
        self._script = client.register_script(_NOTE)
        self._budget = budget or ClusterSettings().noise_budget

    def note(self, n_noise: int, *, pet_id: int | None = None, n_media: int = 0) -> int:
        """Record the noise of a finished recluster, and return the longest streak. Errors from redis-py propagate.

        A recluster that runs twice, because its worker died before the ack, counts twice.

        Args:
            pet_id: the pet whose streak is counted; None counts only the streak across all pets.
            n_media: the number of items of the pet.
        """
        highest = max(HIGH_NOISE, self._budget(n_media))
        return self._run(n_noise, HIGH_NOISE, "" if pet_id is None else pet_id, highest)

    def forget(self, pet_id: int) -> None:
        """Forget the streak of a pet that was deleted. Errors from redis-py propagate."""
        self._run("", HIGH_NOISE, pet_id, 0)

    def _run(self, *arguments: int | str) -> int:
        keys = [NOISE, STREAKS_OF_PETS, NOISY_PETS]
        return cast(int, self._script(keys=keys, args=[*arguments, STREAK_KEPT_MS]))
