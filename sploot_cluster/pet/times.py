"""The times of items, as producers state them: milliseconds since the epoch, and 0 if a producer stated none.

Numbers and not objects, because a pet stores one for each of its items, as a column. This module imports only the
standard library, because the command line reads it before it loads numpy.
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
    """Return the number for a timezone-aware time; None is unknown."""
    return UNKNOWN if time is None else (time - _EPOCH) // _MS


def time_of(ms: int) -> datetime | None:
    """Return the time in UTC; None if it is unknown."""
    return None if ms == UNKNOWN else _EPOCH + ms * _MS


# All numbers that are times.
TIMES: Final = range(ms_of(datetime.min.replace(tzinfo=UTC)), ms_of(datetime.max.replace(tzinfo=UTC)) + 1)
