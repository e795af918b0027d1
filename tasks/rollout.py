"""The pets that a rollout includes: the same pets for every producer, in every language, permanently.

A pet is included when the CRC-32 (IEEE, as in zlib) of its id in decimal ASCII digits, modulo 100, is less than
``percent``. Raising the percentage therefore only adds pets.

    pet id   CRC-32       remainder   included from
    1        2212294583   83          84 %
    42       841265288    88          89 %
    9        2366072709   9           10 %
"""

from __future__ import annotations

import zlib
from typing import Final

EVERYBODY: Final = 100


def is_rolled_out(pet_id: int, percent: int) -> bool:
    """Return whether items of the pet are sent while the rollout is at ``percent``, 0 to 100."""
    return zlib.crc32(str(pet_id).encode("ascii")) % 100 < percent
