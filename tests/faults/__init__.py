"""The fault campaign: real servers, real workers, and everything that can go wrong between them.

``python -m tests.faults`` runs it. The test modules of this package are part of the default suite: they contain the
small exact cases, and prove that the tools of the campaign detect violations.
"""

QUEUE = "campaign"
# A worker of both queues reads QUEUE only while nothing waits in this one.
URGENT = "campaign-urgent"
QUEUES = (QUEUE, URGENT)
