"""The command line: inspects and repairs queues, serves their metrics, and migrates RedisBroker's queues.

Run it as ``python -m broker``. Each module declares its commands with ``add_to``. Commands that list have ``--json``.
Commands that act print their plan, and do nothing without ``--yes``.

Exit codes: 0 done, 1 failed, 2 usage (a bad argument or setting), 3 Redis does not answer, 4 refused: ``--yes`` is
missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import redis
from dramatiq.errors import BrokerConnectionError, BrokerError

from .. import __version__
from ..errors import InvalidField
from . import actions, dead, inspection, keys, metrics_server, migrate, search
from .options import FAILED, UNREACHABLE, USAGE, Commands, UsageError
from .screen import shown

PACKAGE = __name__.partition(".")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.run(given)
    except (UsageError, InvalidField) as error:
        return _fail(USAGE, error)
    except (BrokerConnectionError, redis.ConnectionError, redis.TimeoutError) as error:
        return _fail(UNREACHABLE, f"no answer from Redis: {error}")
    except (BrokerError, redis.RedisError, OSError) as error:
        return _fail(FAILED, error)
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}" if Path(sys.argv[0]).stem == "__main__" else None,
        description="Inspect and repair the queues of the broker.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 Redis does not answer, 4 refused because --yes is missing.",
    )
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {__version__}")
    commands = Commands(parser)
    for module in (inspection, search, keys, dead, actions, metrics_server, migrate):
        module.add_to(commands)
    return parser


def _fail(code: int, error: object) -> int:
    print(f"{PACKAGE}: {shown(error)}", file=sys.stderr)
    return code
