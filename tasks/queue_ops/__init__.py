"""Operations on queues, for the command line and the HTTP API alike: look, plan, act, and write down who did.

    plan_*()  reads, and freezes the ids that it will touch      -> Plan, which says it in Redis's words too
    act(plan) touches these ids and no others, and only while they are as they were seen -> Done
    audit()   who did what, begun and ended, the newest 10,000 or so

No listing ever shows an embedding. ``operations`` is the entry point; ``entries`` reads what an entry is about,
``dead_letters`` selects dead letters, ``canary`` requeues carefully, ``overdue`` finds jobs that are held too long, and
``pet_index`` finds a pet's work among 100,000 jobs.
"""

from tasks.queue_ops.operations import Operations

__all__ = ["Operations"]
