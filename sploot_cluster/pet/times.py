"""The times of items, as producers state them: milliseconds since the epoch, and 0 if a producer stated none.

Times are plain numbers, because a pet stores them in a column with one value per item. This module imports only the
standard library, because the command line imports it without loading numpy.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final


class ItemOrder(StrEnum):
    """The order in which the items of a pet are listed."""

    ARRIVED = "arrived"
    OCCURRED_AT = "occurred_at"  # items without a time come last, in order of arrival


UNKNOWN: Final = 0

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_MS: Final = timedelta(milliseconds=1)


def ms_of(time: datetime | None) -> int:
    """Return a timezone-aware time in milliseconds since the epoch, or ``UNKNOWN`` for None."""
    return UNKNOWN if time is None else (time - _EPOCH) // _MS


def time_of(ms: int) -> datetime | None:
    """Return the time in UTC for milliseconds since the epoch, or None for ``UNKNOWN``."""
    return None if ms == UNKNOWN else _EPOCH + ms * _MS


# The range of times, in milliseconds since the epoch, that a datetime can represent.
TIMES: Final = range(ms_of(datetime.min.replace(tzinfo=UTC)), ms_of(datetime.max.replace(tzinfo=UTC)) + 1)
