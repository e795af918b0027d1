"""The fault campaign: real servers, real workers, and everything that can go wrong between them.

``python -m tests.faults`` runs it. The test modules of this package are part of the default suite: they contain the
small exact cases, and prove that the tools of the campaign detect violations.
"""

QUEUE = "campaign"
# Workers consume both queues, but read QUEUE only while nothing is waiting in this one.
URGENT = "campaign-urgent"
QUEUES = (QUEUE, URGENT)
