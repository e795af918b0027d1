"""Render the Redis users: ``python -m deploy.redis_users --passwords FOLDER [--redis-6] > users.acl``.

FOLDER contains one file per user, named after the user, with the password. The output contains SHA-256 hashes, never a
password. ``--redis-6`` renders for Redis 6.2, which supports neither read-only keys nor selectors: there, an operator
may write pets, and a client may delete streams, pause queues, read dead letters and change the queue limit.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
TEMPLATE: Final = ROOT / "ops" / "config" / "redis" / "users.acl"

USERS: Final = ("producer", "client", "worker", "scheduler", "server", "exporter", "operator", "keda")
SHORTEST: Final = 16  # the same minimum as for tokens of the HTTP API


class PasswordUnusable(ValueError):
    """Raised when a user has no password or one that is too short; names the user."""


def render(passwords: Mapping[str, str], *, for_redis_6: bool = False) -> str:
    """Return an ``aclfile`` for these passwords, one user per line.

    Raises:
        PasswordUnusable: names the user.
    """
    lines = [line for line in TEMPLATE.read_text().splitlines() if line.startswith("user ")]

    def hashed(match: re.Match[str]) -> str:
        password = passwords.get(match[1], "")
        if len(password) < SHORTEST:
            raise PasswordUnusable(
                f"user {match[1]}: expected a password of {SHORTEST} characters or more, got {len(password)}: "
                "openssl rand -hex 32"
            )
        return "#" + hashlib.sha256(password.encode()).hexdigest()

    # only braces after a space are password placeholders; other braces are part of keys
    text = "\n".join(re.sub(r"(?<= )\{([a-z]+)\}", hashed, line) for line in lines) + "\n"
    if for_redis_6:
        text = re.sub(r" \+latency\|histogram| \+slowlog\|len", "", text.replace("%R~", "~"))
        text = "\n".join(map(_without_brackets, text.splitlines())) + "\n"
    return text


def _without_brackets(line: str) -> str:
    """Return the line without selectors (brackets); their commands are then allowed for all keys of the user."""
    words = [word.strip("()") for word in line.split()]
    keys = [word for word in words if word.startswith("~")]
    others = [word for word in words if not word.startswith("~")]
    at = others.index("resetchannels") + 1
    # remove duplicates
    return " ".join(dict.fromkeys([*others[:at], *keys, *others[at:]]))


def main() -> int:
    """Print the rendered file; return 2 if a password is unusable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passwords", type=Path, required=True)
    parser.add_argument("--redis-6", action="store_true")
    given = parser.parse_args()
    passwords = {path.name: path.read_text().strip() for path in given.passwords.iterdir() if path.name in USERS}
    try:
        sys.stdout.write(render(passwords, for_redis_6=given.redis_6))
    except PasswordUnusable as refused:
        print(f"redis_users: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
