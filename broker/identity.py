"""A process's consumer name, and a check whether another process on the same machine is alive.

A name has the form ``host:pid:birth:random``. ``birth`` identifies the machine's boot, the process namespace and the
process's start time. So a process can determine reliably that another process on its machine is dead: the pid does not
exist, belongs to a newer process, or is a zombie. This requires Linux's ``/proc``. On other systems, only missing
heartbeats show that a process is dead.
"""

from __future__ import annotations

import os
import secrets
import socket
import zlib
from functools import cache
from pathlib import Path

from .keeper_process import ENDED, stat_of


def consumer_name() -> str:
    """Return a new consumer name for this process."""
    pid = os.getpid()
    host = socket.gethostname().replace(":", "-") or "unknown"
    return f"{host}:{pid}:{_namespace()}.{started_at(pid) or 0}:{secrets.token_hex(4)}"


def is_dead_sibling(name: str) -> bool:
    """Return whether a consumer name belongs to a process on this machine that has ended, or False if unknown."""
    parts = name.split(":")
    if len(parts) != 4 or not parts[1].isdecimal():
        return False
    namespace, _, birth = parts[2].partition(".")
    if namespace != _namespace() or namespace == "0" or birth in ("", "0"):
        return False
    return _has_ended(int(parts[1]), birth)


class OtherProcess:
    """A process on this machine, identified by its pid and its start time, because pids are reused."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started_at = started_at(pid)

    def has_ended(self) -> bool:
        return _has_ended(self.pid, self._started_at)


@cache
def _namespace() -> str:
    """Return a short identifier of the machine's boot and the process namespace, or 0 if there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").readlink()
        return f"{zlib.crc32(f'{boot}{namespace}'.encode()):08x}"
    except OSError:
        return "0"


def started_at(pid: int) -> str | None:
    """Return a process's start time in ticks since boot, "" if the process has ended, or None if unknown."""
    found = stat_of(pid)
    if found is None:
        return None
    state, ticks = found
    return "" if state in ENDED else ticks


def _has_ended(pid: int, birth: str | None) -> bool:
    """Return whether the process with this pid and start time has ended, or False if unknown."""
    return not is_running(pid) or started_at(pid) not in (None, birth)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    found = started_at(pid)
    if found is not None:
        return found != ""
    # the process is gone or hidden: hidepid and systemd's ProtectProc hide other users' processes
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
