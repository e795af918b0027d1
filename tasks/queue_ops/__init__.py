"""Operations on queues, shared by the command line and the HTTP API: inspect, plan, act, audit.

    plan_*()  reads, and freezes the ids it will touch           -> Plan, which also lists the Redis commands
    act(plan) touches only these ids, each only if unchanged     -> Done
    audit()   lists who did what, when, and how it ended; about 10,000 entries are kept

No listing ever shows an embedding. ``operations`` is the entry point; ``entries`` extracts facts from entries,
``dead_letters`` selects dead letters, ``canary`` requeues carefully and ``canary_runs`` does so in the background,
``overdue`` finds jobs that are held too long, and ``pet_index`` finds a pet's jobs among 100,000.
"""

from tasks.queue_ops.operations import Operations

__all__ = ["Operations"]
