"""Every key of a queue. ``ns`` is the namespace (``streams`` by default), ``q`` the queue.

    key                      type    content                                               removed
    ns:q                     stream  waiting and in-flight messages; one group             entry by entry, when settled
    {ns:q}:delayed           zset    due (ms, server time) -> name                         at promotion
    {ns:q}:delayed:messages  hash    name -> message                                       at promotion
    {ns:q}:ordered:at-work   zset    key, 0 byte, place -> 0: at work, see work.lua        when its turn ends
    {ns:q}:ordered:line      zset    key, 0 byte, place -> 0: waiting in line              at its turn
    {ns:q}:ordered:messages  hash    member of the line -> due (ms), message               at its turn
    {ns:q}:ordered:limits    hash    key -> limits; key, 0 byte, what -> starts, failures  when no longer needed
    {ns:q}:dead              stream  dead letters: see dead_letters.py                     dead_letter_ttl_ms and _max
    {ns:q}:dead:mistakes     zset    dead letter -> hash of its reason, actor, field, class  with the dead letter
    {ns:q}:consumers         zset    consumer -> heartbeat (ms, server time); 0 = dead     at a clean stop, by janitors
    {ns:q}:unique:<key>      string  id of the waiting message of a unique key             at job start, time limit
    {ns:q}:holders           hash    =<id of that message> -> its place, @<place> -> id    at job start or end
                                     +<id> -> the newest message coalesced onto it
    {ns:q}:cancelled         hash    entry whose message was received and then cancelled   when the entry ends
                                     -> SHA-1 of the coalesced message to drop, or ""
    {ns:q}:suspects          hash    entry -> crash count [delivery, consumer, isolated?]  when settled
    {ns:q}:recent:<producer> string  a producer thread's last enqueue id                   expires, 20 s by default
                                     <producer> is <entry>/<id> for a follow-up message    with the entry, or 15 min
    {ns:q}:progress:<id>     string  [done, total, note] of a running job, JSON            when it ends, or in an hour
    {ns:q}:timer             stream  the last 16 notifications for janitors                never
    {ns:q}:promoter          string  the consumer that promoted due messages last          expires, 1 s
    {ns:q}:swept             string  present until another pass over all entries is due    expires, 25 s
    {ns:q}:paused            string  present while delivery is paused                      at resume
    {ns:q}:shards            string  number of shards, and the largest number ever         never
    {ns:q}:counters          hash    acked, retried, dead, recovered, …                    never; about 15 fields

    {ns:group:<id>}:members  hash    of a group with callbacks: "=size" -> n, and the ids  with its callbacks, or in a
                                     of the members that have ended                        day (``barrier_ttl``)

A shard of a queue is a queue of its own, ``q.s1``, ``q.s2``, …; see sharding/shards.py.

The last key belongs to no queue. The hash tag of every other key is the stream's name, which contains no braces. So all
keys of a queue share one slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

# Name of the consumer that owns handed-back entries until a worker takes them. The tilde distinguishes it from the
# consumer names of processes.
HANDED_BACK = "~handed-back"


@dataclass(frozen=True)
class QueueKeys:
    """The keys of one queue, or of one shard of a queue.

    Attributes:
        name_of_messages: the queue name in the messages, which is the same in all shards of a queue.
    """

    namespace: str
    queue_name: str
    base_name: str = ""

    @property
    def name_of_messages(self) -> str:
        return self.base_name or self.queue_name

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
    def dead_mistakes(self) -> str:
        return self._of("dead:mistakes")

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
    def promoter(self) -> str:
        return self._of("promoter")

    @cached_property
    def swept(self) -> str:
        return self._of("swept")

    @cached_property
    def paused(self) -> str:
        return self._of("paused")

    @cached_property
    def shards(self) -> str:
        return self._of("shards")

    @cached_property
    def counters(self) -> str:
        return self._of("counters")

    @cached_property
    def at_work(self) -> str:
        return self._of("ordered:at-work")

    @cached_property
    def line(self) -> str:
        return self._of("ordered:line")

    @cached_property
    def messages_in_line(self) -> str:
        return self._of("ordered:messages")

    @cached_property
    def limits(self) -> str:
        return self._of("ordered:limits")

    @cached_property
    def cancelled(self) -> str:
        return self._of("cancelled")

    @cached_property
    def holders(self) -> str:
        return self._of("holders")

    @cached_property
    def work(self) -> tuple[str, ...]:
        """The keys that hold waiting messages. They are the first KEYS of every script that includes work.lua."""
        return (
            self.stream,
            self.delayed,
            self.delayed_messages,
            self.timer,
            self.at_work,
            self.line,
            self.messages_in_line,
            self.holders,
            self.limits,
        )

    def cancelling(self, unique_key: str | None) -> tuple[str, ...]:
        """Return the KEYS of cancel.lua for a message with this unique key."""
        keys = (*self.work, self.cancelled, self.suspects, self.counters, self.consumers)
        return keys if unique_key is None else (*keys, self.unique(unique_key))

    def recent(self, producer: str) -> str:
        return self._of(f"recent:{producer}")

    def progress(self, message_id: str) -> str:
        return self._of(f"progress:{message_id}")

    def unique(self, unique_key: str) -> str:
        return self._of(f"unique:{unique_key}")


class KeysByQueue(dict[str, QueueKeys]):
    """The keys of a namespace's queues, by queue name. Each value is created on first use.

    Args:
        base_of: a function that returns the name of the queue to which a shard belongs, and other names unchanged.
    """

    def __init__(self, namespace: str, base_of: Callable[[str], str] = lambda queue_name: queue_name) -> None:
        super().__init__()
        self._namespace = namespace
        self._base_of = base_of

    def __missing__(self, queue_name: str) -> QueueKeys:
        keys = self[queue_name] = QueueKeys(self._namespace, queue_name, self._base_of(queue_name))
        return keys
