"""This package's Lua scripts. Each script performs steps that must be atomic.

Every script in ``lua/`` documents its KEYS, ARGV and reply at the top. Shared code, such as ``work.lua``, is prepended
to the scripts that use it. All of a script's keys are passed in KEYS and share one slot. All scripts run on Redis 6.2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 under which a server caches it.

    Attributes:
        is_repeatable: whether a call may be sent again if there was no reply, because an identical second call changes
            nothing and returns the first call's result.
    """

    name: str
    text: str
    sha: str
    is_repeatable: bool = False


def _load(name: str, *shared: str, is_repeatable: bool = False) -> Script:
    text = "".join(map(_text, (*shared, name)))
    # Redis names scripts by their SHA-1; it is not used for security.
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), is_repeatable)


def _text(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


ENQUEUE = _load("enqueue", "work", is_repeatable=True)
ENQUEUE_PLAIN = _load("enqueue_plain", is_repeatable=True)
SETTLE = _load("settle", "work")
OPEN_GROUP = _load("open_group", is_repeatable=True)
END_MEMBER = _load("end_member", is_repeatable=True)
RETRY = _load("retry", "work")
BURY = _load("bury", "work", "dead")
CONDEMN = _load("condemn", "dead")
START = _load("start", "work")
EXPIRE = _load("expire", "work")
TAKE = _load("take", "head")
RESYNC = _load("resync", "head")
HEADS = _load("heads", "group", "head")
HAND_BACK = _load("hand_back")
BEAT = _load("beat", is_repeatable=True)
LEAVE = _load("leave")
TICK = _load("tick", "work")
RESIGN = _load("resign")
ADVANCE = _load("advance", "work")
KEYS_AT_WORK = _load("keys_at_work", "work", "line")
PASS_OVER = _load("pass_over", "work", "dead")
FORGET = _load("forget", "work")
SWEEP = _load("sweep", "group")
STALE_LOCKS = _load("stale_locks", "work")
STATS = _load("stats", "group", "line", is_repeatable=True)
SIZE = _load("size", is_repeatable=True)
CANCEL = _load("cancel", "work")
CANCELLED = _load("cancelled")
SEARCH = _load("search", "work", "group")
FLUSH = _load("flush")
LOOK_UP = _load("look_up")
PAUSE = _load("pause")
REQUEUE = _load("requeue", "work")
RESCUE = _load("rescue", "group")
RETIRE = _load("retire")
UNOWNED = _load("unowned", "group")
SET_SHARDS = _load("set_shards", is_repeatable=True)
SHARDS = _load("shards", is_repeatable=True)
WAITING_FOR = _load("waiting_for", "group", is_repeatable=True)
MOVE_IN = _load("move_in")
MOVE_OUT = _load("move_out")
