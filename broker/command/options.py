"""The options that all commands share, access to the broker that they select, and the confirmation of actions."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

import redis
from dramatiq.cli import import_broker

from ..broker import DEFAULT_URL, RedisStreamsBroker
from ..settings import BrokerSettings

DONE, FAILED, USAGE, UNREACHABLE, REFUSED = 0, 1, 2, 3, 4

Run = Callable[[argparse.Namespace], int]

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LONGEST_MS: Final = 100 * 365 * _UNITS["d"]


class UsageError(Exception):
    """Raised when arguments contradict each other or name something that does not exist."""


class Commands:
    """A parser's commands. Every command has the options that select the broker."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        self, name: str, run: Run, text: str, *, is_listing: bool = False, is_action: bool = False
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            run: a function that is called with the parsed arguments and returns the exit code.
            is_listing: whether the command has the option ``--json``.
            is_action: whether the command has the option ``--yes``.
        """
        parser = self._commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if is_listing:
            parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        if is_action:
            parser.add_argument("--yes", action="store_true", help="carry out the plan instead of only printing it")
        _add_broker(parser)
        parser.set_defaults(run=run)
        return parser

    def group(self, name: str, text: str) -> Commands:
        """Add a command that consists of subcommands."""
        return Commands(self._commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}."))


def _add_broker(parser: argparse.ArgumentParser) -> None:
    defaults = BrokerSettings()
    where = parser.add_argument_group("which broker")
    where.add_argument("--url", help=f"the Redis server (default: REDIS_URL, or {DEFAULT_URL})")
    where.add_argument("--namespace", default=defaults.namespace, help="prefix of all keys (default: %(default)s)")
    where.add_argument("--group", default=defaults.group, help="consumer group (default: %(default)s)")
    where.add_argument(
        "--app",
        metavar="MODULE[:BROKER]",
        help="use this program's broker instead, with its client, settings, queues and decoders",
    )


def url_of(given: argparse.Namespace) -> str:
    return str(given.url or os.environ.get("REDIS_URL") or DEFAULT_URL)


class Desk:
    """The broker that a command uses, and access to its queues."""

    def __init__(self, broker: RedisStreamsBroker, client: redis.Redis | None) -> None:
        self.broker = broker
        self._client: Any = client

    def queues(self) -> list[str]:
        """Return the queues that the program declares or, without a program, those whose streams Redis has."""
        if self._client is None:
            return sorted(self.broker.get_declared_queues())
        namespace, found = self.broker.settings.namespace, set()
        name_in = re.compile(rf"(?:\{{{re.escape(namespace)}:([^}}]+)\}}:.+|{re.escape(namespace)}:([^{{}}]+))")
        for key in self._client.scan_iter(match=f"*{namespace}:*", count=1_000, _type="stream"):
            if (match := name_in.fullmatch(key.decode(errors="replace"))) is not None:
                found.add(match[1] or match[2])
        return sorted(found)

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return the given names after checking that the queues exist, or the names of all queues if none are given."""
        return [self.named(name) for name in names] if names else self.queues()

    def named(self, name: str) -> str:
        """Return a queue name after checking that the queue exists.

        Raises:
            UsageError: there is no such queue.
        """
        if name in self.broker.get_declared_queues():
            return name
        stats = self.broker.stats(name)
        if stats.last_id != "0-0" or stats.paused or stats.consumers or self.broker.counters(name):
            return name
        known = self.queues()
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"queues: {', '.join(known) or 'none'}"
        raise UsageError(f"there is no queue {name!r} in the namespace {self.broker.settings.namespace!r}; {hint}")


@contextmanager
def opened(given: argparse.Namespace, **settings: Any) -> Iterator[Desk]:
    """Yield the broker that the options select, and close it afterwards.

    Args:
        settings: additional broker settings, which a program's own broker ignores.

    Raises:
        UsageError: the program has no such broker, or the URL is invalid.
    """
    if given.app is not None:
        broker, client = _broker_of(given.app), None
    else:
        try:
            client = redis.Redis.from_url(url_of(given))
        except ValueError as error:
            raise UsageError(f"--url: {error}") from error
        broker = RedisStreamsBroker(
            client=client, namespace=given.namespace, group=given.group, middleware=[], **settings
        )
    try:
        yield Desk(broker, client)
    finally:
        broker.close()


def _broker_of(program: str) -> RedisStreamsBroker:
    sys.path.insert(0, "")
    try:
        _, broker = import_broker(program)
    except ImportError as error:
        raise UsageError(f"--app: {error}") from error
    if not isinstance(broker, RedisStreamsBroker):
        raise UsageError(f"--app: expected a RedisStreamsBroker, got {type(broker).__name__}; add :NAME of the broker")
    return broker


def duration_ms(text: str) -> int:
    """Parse a duration such as ``30s``, ``15m``, ``2h`` or ``7d``, for argparse; return it in ms."""
    match = re.fullmatch(r"(\d{1,15})([smhd])", text)
    if match is None or (ms := int(match[1]) * _UNITS[match[2]]) > LONGEST_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30s, 15m, 2h or 7d")
    return ms


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def confirmed(given: argparse.Namespace, plan: str, act: Callable[[], str], *, n: int = 1) -> int:
    """Print an action's plan, and carry it out if ``--yes`` is given.

    Args:
        plan: a description of the action, without a full stop.
        act: a function that carries out the action and returns a description of the result.
        n: the number of messages or dead letters that the action would change. If it is 0, nothing is done.

    Returns:
        The exit code.
    """
    print(f"Plan: {plan}.")
    if n == 0:
        print("Nothing to do.")
        return DONE
    if not given.yes:
        print("Nothing was done. Add --yes to carry out the plan.", file=sys.stderr)
        return REFUSED
    print(f"Done: {act()}.")
    return DONE


def counted(n: int, one: str) -> str:
    """Return a count with its noun, such as ``1 message`` or ``1,000 messages``."""
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"
