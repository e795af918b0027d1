"""The actors of the Django project."""

from __future__ import annotations

import dramatiq
from dramatiq_crontab import interval


@dramatiq.actor(store_results=True)
def add(x: int, y: int) -> int:
    return x + y


@dramatiq.actor(max_retries=0)
def fail() -> None:
    raise ValueError("as asked")


@dramatiq.actor
def tick() -> None:
    pass


interval(seconds=1)(tick)
