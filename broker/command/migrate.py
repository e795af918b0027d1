"""The command ``migrate``: moves the messages of Dramatiq's RedisBroker to this broker."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import redis

from ..migration import Drained, drain
from ..settings import BrokerSettings
from .options import DONE, FAILED, Commands, UsageError, opened, url_of
from .screen import shown

OLD_REDIS_URL: Final = "OLD_REDIS_URL"


def add_to(commands: Commands) -> None:
    parser = commands.add("migrate", migrate, "move the messages of RedisBroker's queues to this broker")
    parser.add_argument(
        "old_url",
        metavar="OLD_URL",
        nargs="?",
        help=f"the old server, without a password (default: {OLD_REDIS_URL}, or the new server)",
    )
    parser.add_argument(
        "--old-namespace", default="dramatiq", help="prefix of RedisBroker's keys (default: %(default)s)"
    )
    parser.add_argument(
        "--max-message-bytes",
        type=int,
        default=BrokerSettings().max_message_bytes,
        help="maximum message size, as in the settings of the new workers (default: %(default)s)",
    )


def migrate(given: argparse.Namespace) -> int:
    try:
        if given.old_url and urlsplit(given.old_url).password:
            # every user of the machine can read a process's arguments
            raise UsageError(f"OLD_URL has a password; set the environment variable {OLD_REDIS_URL} to it instead")
        old = redis.Redis.from_url(given.old_url or os.environ.get(OLD_REDIS_URL) or url_of(given))
    except ValueError as error:
        raise UsageError(f"{'OLD_URL' if given.old_url else OLD_REDIS_URL}: {error}") from error
    with old, opened(given, max_message_bytes=given.max_message_bytes) as desk:
        drained = drain(old, desk.broker, namespace=given.old_namespace)
    _show(drained)
    n_left = sum(one.left for one in drained.values())
    n_refused = sum(len(one.refused) for one in drained.values())
    if n_left:
        print(f"{n_left} left: stop the old workers and run this again")
    if n_refused:
        print(f"{n_refused} refused: fix the messages listed above and run this again")
    if not n_left and not n_refused:
        print("nothing is left")
    return FAILED if n_left or n_refused else DONE


def _show(drained: Mapping[str, Drained]) -> None:
    for queue_name, one in drained.items():
        n_refused = f", {len(one.refused)} refused" if one.refused else ""
        print(f"{queue_name}: {one.moved} moved, {one.left} left to live workers{n_refused}")
        for message in one.refused:
            print(f"{queue_name}: {message.message_id} stays in the old queue: {shown(message.error)}")
