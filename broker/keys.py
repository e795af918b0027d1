"""Every key of a queue. ``ns`` is the namespace (``streams`` by default), ``q`` the queue.

    key                      type    holds                                                 ends
    ns:q                     stream  work, waiting and in flight; one group                entry by entry, when settled
    {ns:q}:delayed           zset    due (ms, server time) -> name                         promotion
    {ns:q}:delayed:messages  hash    name -> message                                       promotion
    {ns:q}:ordered           hash    ordering key -> its message at work: entry or name    when the key's last is done
    {ns:q}:ordered:line      zset    ordering key, 0 byte, place -> 0: who waits in line   its turn
    {ns:q}:ordered:messages  hash    the same -> due (ms), message                         its turn
    {ns:q}:dead              stream  dead letters: see dead_letters.py                     dead_letter_ttl_ms and _max
    {ns:q}:consumers         zset    consumer -> heartbeat (ms, server time); 0 = dead     clean stop, janitor
    {ns:q}:unique:<key>      string  id of the waiting message of a unique key             start of the job, time limit
    {ns:q}:holders           hash    = id of such a message -> its place, @ place -> id,   start or end of the job
                                     + id -> the newest message coalesced onto it
    {ns:q}:suspects          hash    entry -> crashes charged to it [who runs it, alone?]  when settled
    {ns:q}:recent:<who>      string  a producer thread's last enqueue id                   expires, 20 s by default
    {ns:q}:timer             stream  one entry; wakes janitors when there is news          never; one entry
    {ns:q}:paused            string  present: nothing is delivered                         resume
    {ns:q}:counters          hash    acked, retried, dead, recovered, …                    never; some 15 fields

A queue's name holds no braces, so the hash tag is the stream's own name, and all keys of a queue share its slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# Owns entries that were handed back until somebody takes them. The tilde keeps it apart from processes.
HANDED_BACK = "~handed-back"


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue."""

    namespace: str
    queue_name: str

    @cached_property
    def stream(self) -> str:
        return f"{self.namespace}:{self.queue_name}"

    def _of(self, what: str) -> str:
        return f"{{{self.stream}}}:{what}"

    @cached_property
    def delayed(self) -> str:
        return self._of("delayed")

    @cached_property
    def delayed_messages(self) -> str:
        return self._of("delayed:messages")

    @cached_property
    def dead(self) -> str:
        return self._of("dead")

    @cached_property
    def consumers(self) -> str:
        return self._of("consumers")

    @cached_property
    def suspects(self) -> str:
        return self._of("suspects")

    @cached_property
    def timer(self) -> str:
        return self._of("timer")

    @cached_property
    def paused(self) -> str:
        return self._of("paused")

    @cached_property
    def counters(self) -> str:
        return self._of("counters")

    @cached_property
    def ordered(self) -> str:
        return self._of("ordered")

    @cached_property
    def line(self) -> str:
        return self._of("ordered:line")

    @cached_property
    def messages_in_line(self) -> str:
        return self._of("ordered:messages")

    @cached_property
    def holders(self) -> str:
        return self._of("holders")

    @cached_property
    def work(self) -> tuple[str, ...]:
        """Where work stands: the first KEYS of the scripts that put messages to work."""
        return (
            self.stream,
            self.delayed,
            self.delayed_messages,
            self.timer,
            self.ordered,
            self.line,
            self.messages_in_line,
            self.holders,
        )

    def recent(self, producer: str) -> str:
        return self._of(f"recent:{producer}")

    def unique(self, unique_key: str) -> str:
        return self._of(f"unique:{unique_key}")


class KeysByQueue(dict[str, QueueKeys]):
    """The keys of the queues of one namespace, by the queue's name; made at first use."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._namespace = namespace

    def __missing__(self, queue_name: str) -> QueueKeys:
        keys = self[queue_name] = QueueKeys(self._namespace, queue_name)
        return keys
