"""The fault campaign: real servers, real workers, and everything that can go wrong between them.

``python -m tests.faults`` runs it. The test modules of this package are part of the default suite: they test small
cases exactly, and prove that the tools of the campaign detect violations.
"""

QUEUE = "campaign"
# The queue with the higher priority: workers consume both queues, but read QUEUE only while this one is empty.
URGENT = "campaign-urgent"
QUEUES = (QUEUE, URGENT)
