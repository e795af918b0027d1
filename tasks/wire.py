"""Flat events on ``streams:embedding.ingested`` become Dramatiq messages.

An event is checked here, before it costs a worker thread anything. A bad one becomes a dead letter at once, with its
own fields and the reason ``undecodable``; a good one travels on in the one form that workers pass on, so that a retry
of it is an ordinary message. A Dramatiq message that somebody sent is not checked here, but by its actor, which knows
a message that was by its :class:`CheckedArguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dramatiq

from broker import EntryDecoder, UndecodableEntry
from sploot_cluster.errors import InvalidInput
from tasks.contracts import EMBEDDING_INGESTED, EmbeddingIngested


class CheckedArguments(dict[str, Any]):
    """The keyword arguments of a message made here, and the ``event`` that they say, which was checked.

    As JSON they are arguments like any others: a retry is checked again.
    """

    def __init__(self, event: EmbeddingIngested) -> None:
        super().__init__(event.to_kwargs())
        self.event = event


def decode_embedding(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
    """The message of a flat event. Its id is the event's, its time the one at which Redis took the entry.

    Raises:
        UndecodableEntry: names the field that is unknown, missing or cannot be used.
    """
    try:
        event = EmbeddingIngested.from_fields(fields)
    except InvalidInput as refused:
        raise UndecodableEntry(refused.field, refused.problem, refused.mend) from refused
    return dramatiq.Message(
        queue_name=EMBEDDING_INGESTED,
        actor_name=EmbeddingIngested.actor_name,
        args=(),
        kwargs=CheckedArguments(event),
        options={},
        message_id=event.event_id,
        message_timestamp=int(entry_id.partition("-")[0]),
    )


DECODERS: Final[Mapping[str, EntryDecoder]] = {EMBEDDING_INGESTED: decode_embedding}
