"""Which pets a rollout has reached. The same for every producer, in every language, and for ever.

A pet belongs to the first ``percent`` of all pets when the CRC-32 (IEEE, as zlib has it) of its id, written as decimal
ASCII digits, has a remainder below ``percent`` when divided by 100. So raising the percentage only adds pets.

    pet id   CRC-32       remainder   in at
    1        2212294583   83          84 %
    42       841265288    88          89 %
    9        2366072709   9           10 %
"""

from __future__ import annotations

import zlib
from typing import Final

EVERYBODY: Final = 100


def is_rolled_out(pet_id: int, percent: int) -> bool:
    """Whether media of the pet are handed in while the rollout has reached ``percent``, 0 to 100."""
    return zlib.crc32(str(pet_id).encode("ascii")) % 100 < percent
