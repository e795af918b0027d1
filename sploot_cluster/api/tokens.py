"""Bearer tokens, each with a name and a role, and the table of the operations that each role may call.

``SPLOOT_API_TOKENS`` defines tokens as ``name:role:secret``, separated by commas or newlines. To rotate a secret, add a
second token, move the callers to it, and then remove the old one.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.errors import InvalidInput

VARIABLE: Final = "SPLOOT_API_TOKENS"

# Minimum length of a secret. 16 random hex characters are 64 bits, too many to guess over a network. The hint for a
# short secret suggests four times as many characters.
MIN_SECRET: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET: Final = re.compile(r"[!-~]*")  # a header can contain visible ASCII characters only


class Role(StrEnum):
    """The role of a caller. It defines which operations the caller may call."""

    UPLOADER = "uploader"  # a service that only ingests items, and may not read
    VIEWER = "viewer"  # reads pets and jobs
    LABELLER = "labeller"  # a user who corrects clusters and reads
    PRODUCER = "producer"  # a service that ingests items, makes corrections and reads pets
    OPERATOR = "operator"  # an on-call engineer; may call everything


_UPLOADERS: Final = frozenset({Role.UPLOADER, Role.PRODUCER, Role.OPERATOR})
_LABELLERS: Final = frozenset({Role.LABELLER, Role.PRODUCER, Role.OPERATOR})
_READERS: Final = frozenset(Role) - {Role.UPLOADER}
_OPERATORS: Final = frozenset({Role.OPERATOR})

# Operation id -> roles that may call it. ``public`` checks the operations that are not listed here.
MAY_CALL: Final[Mapping[str, frozenset[Role]]] = {
    "whoami": frozenset(Role),
    "recluster": _LABELLERS,
    **{request.actor_name: _LABELLERS for request in VERBS.values()},
    "ingest_embeddings": _UPLOADERS,
    "list_pets": _READERS,
    "get_clusters": _READERS,
    "get_cluster": _READERS,
    "get_why": _READERS,
    "get_suggestions": _READERS,
    "get_doubtful": _READERS,
    "get_tally": _READERS,
    "list_items": _READERS,
    "get_history": _READERS,
    "get_revision": _READERS,
    "compare_revisions": _READERS,
    "get_model": _READERS,
    "begin_model": _OPERATORS,
    "end_model": _OPERATORS,
    "delete_pet": _OPERATORS,
    "delete_item": _OPERATORS,
    "export_pet": _OPERATORS,
    "get_job": _READERS,
    "list_pet_jobs": _READERS,
    "get_preview": _READERS,
    "get_map": _READERS,
    "get_queues": _READERS,
    "watch_queues": _READERS,
    "list_jobs": _READERS,
    "list_workers": _READERS,
    "list_periodic_jobs": _READERS,
    "get_queue_history": _READERS,
    "search_jobs": _OPERATORS,
    "group_dead_letters": _OPERATORS,
    "get_audit": _OPERATORS,
    "list_dead_letters": _OPERATORS,
    "get_dead_letter": _OPERATORS,
    "plan_rescue": _OPERATORS,
    "plan_retire_consumer": _OPERATORS,
    "plan_pause": _OPERATORS,
    "plan_resume": _OPERATORS,
    "plan_requeue": _OPERATORS,
    "plan_purge": _OPERATORS,
    "plan_cancel": _OPERATORS,
    "apply_plan": _OPERATORS,
    "list_canaries": _OPERATORS,
    "start_canary": _OPERATORS,
    "stop_canary": _OPERATORS,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. History and audit log record its name."""

    name: str
    role: Role

    @property
    def may_call(self) -> Sequence[str]:
        """The ids of the operations that the caller may call, sorted."""
        return sorted(operation for operation, roles in MAY_CALL.items() if self.role in roles)


# The caller while no tokens are configured: any program on this machine.
LOOPBACK: Final = Caller("loopback", Role.OPERATOR)

# Names that a token must not have, because the history uses them for other requesters.
_RESERVED: Final = frozenset({LOOPBACK.name, "machine", "unknown"})


@dataclass(frozen=True, slots=True)
class Token:
    """A caller and its secret. The secret is never shown."""

    name: str
    role: Role
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The configured tokens. Without any, only callers on this machine are served."""

    all: Sequence[Token] = ()

    def __bool__(self) -> bool:
        return bool(self.all)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the tokens from ``name:role:secret`` entries separated by commas or newlines.

        Raises:
            InvalidInput: an entry is invalid. The error gives its position and name, never its secret.
        """
        entries = [entry.strip() for entry in re.split(r"[,\n]", text)]
        tokens: list[Token] = []
        for position, entry in enumerate(filter(None, entries), start=1):
            token = _parse(position, entry)
            _refuse_duplicate(position, token, tokens)
            tokens.append(token)
        return cls(tuple(tokens))

    def holder_of(self, secret: str) -> Caller | None:
        """Return the caller with this secret, or None. The time taken does not depend on which token matches."""
        sent, holder = secret.encode("utf-8", "surrogateescape"), None
        for token in self.all:
            if hmac.compare_digest(token.secret.encode(), sent):
                holder = Caller(token.name, token.role)
        return holder


def _parse(position: int, entry: str) -> Token:
    parts = entry.split(":", 2)
    # do not show any part of an entry before its form is known to be right, because it may be a bare secret
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise _unusable(f"entry {position}", "is not name:role:secret", "write e.g. auth:producer:<secret>")
    name, role, secret = parts
    entry_name = f"entry {position} ({name})"
    if name in _RESERVED:
        raise _unusable(entry_name, f"has a reserved name ({', '.join(sorted(_RESERVED))})", "choose another name")
    if role not in list(Role):
        raise _unusable(entry_name, "has an unknown role", f"write one of: {', '.join(Role)}")
    if not _SECRET.fullmatch(secret):
        raise _unusable(entry_name, "has a secret that a header cannot carry", "use visible ASCII characters")
    if len(secret) < MIN_SECRET:
        hint = f"use at least {MIN_SECRET} random ones: openssl rand -hex 32"
        raise _unusable(entry_name, f"has a secret of {len(secret)} characters", hint)
    return Token(name, Role(role), secret)


def _refuse_duplicate(position: int, token: Token, others: Sequence[Token]) -> None:
    for at, other in enumerate(others, start=1):
        if other.name == token.name:
            hint = "give every token its own name, e.g. auth-1 and auth-2 while a secret is being changed"
            raise _unusable(f"entry {position} ({token.name})", f"has the name of entry {at}", hint)
        if hmac.compare_digest(other.secret, token.secret):
            hint = "give every token its own secret, so that each can be removed separately"
            raise _unusable(f"entry {position} ({token.name})", f"has the secret of entry {at} ({other.name})", hint)


def _unusable(entry: str, problem: str, hint: str) -> InvalidInput:
    return InvalidInput(VARIABLE, f"{entry} {problem}", hint)
