"""The limits on what callers may send, in a message, an HTTP body, a command or a Python call.

This module imports nothing, because producers use it too.
"""

from __future__ import annotations

from typing import Final

MAX_INT64: Final = 2**63 - 1
MAX_TEXT: Final = 256  # characters of a media id, event id or requester
MAX_MODEL: Final = 128  # characters of a model's name@version
MAX_NAME: Final = 100  # characters of the name of a pet or cluster
MAX_CLUSTER_IDS: Final = 1_000  # clusters in one correction
MAX_APART: Final = 20  # clusters that one correction keeps apart; each pair of them becomes a constraint
MAX_MEDIA_IDS: Final = 10_000  # items in one correction
MIN_DIM: Final = 2
MAX_DIM: Final = 8_192
# Minimum norm of an embedding. Below it, the direction is rounding noise: float32 has about 7 digits, and a normalised
# subnormal has fewer.
SMALLEST_NORM: Final = 1e-12
