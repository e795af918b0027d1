"""The consumer name of a process, and whether another process of the same machine is still alive.

A name reads ``host:pid:birth:random``. ``birth`` encodes the machine's boot, the process namespace and the time at
which the process started. So processes of the same machine can tell for certain that it is dead: its pid is gone, is
used by another process, or is a zombie. That needs Linux's ``/proc``; elsewhere only the missing heartbeat shows it.
"""

from __future__ import annotations

import os
import secrets
import socket
import zlib
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def consumer_name() -> str:
    """Return a new consumer name for this process."""
    pid = os.getpid()
    host = socket.gethostname().replace(":", "-") or "unknown"
    return f"{host}:{pid}:{_namespace()}.{_started_at(pid) or 0}:{secrets.token_hex(4)}"


def is_dead_sibling(name: str) -> bool:
    """Return whether ``name`` is a process of this machine that has ended; False if that is unknown."""
    parts = name.split(":")
    if len(parts) != 4 or not parts[1].isdecimal():
        return False
    namespace, _, started_at = parts[2].partition(".")
    if namespace != _namespace() or namespace == "0" or started_at in ("", "0"):
        return False
    pid = int(parts[1])
    found = _started_at(pid)
    if found is None:
        # gone, or hidden, as hidepid and systemd's ProtectProc hide processes of other users
        return not _exists(pid)
    return found != started_at


class OtherProcess:
    """A process of this machine, identified by its pid and its start time, because pids are reused."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started_at = _started_at(pid)

    def has_ended(self) -> bool:
        found = _started_at(self.pid)
        if found is None:
            return not _exists(self.pid)
        return found == "" or found != self._started_at


@cache
def _namespace() -> str:
    """Return a short word for this boot of the machine and this process namespace; 0 without /proc."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text()
        namespace = (_PROC / "self/ns/pid").readlink()
        return f"{zlib.crc32(f'{boot}{namespace}'.encode()):08x}"
    except OSError:
        return "0"


def _started_at(pid: int) -> str | None:
    """Return the process's start time in ticks since boot; "" if it has ended, None if that cannot be read."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # the name in parentheses may contain anything, parentheses too: count from the last one
    after_name = stat.rpartition(")")[2].split()
    state, started_at = after_name[0], after_name[19]
    return "" if state in "ZXx" else started_at


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
