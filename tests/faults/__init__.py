"""The fault campaign: real servers, real workers, and everything that can go wrong between them.

``python -m tests.faults`` runs it. The test modules beside it, part of the default suite, hold the small exact cases
and the proof that the campaign's own tools notice what they are there to notice.
"""

QUEUE = "campaign"
# Whoever works on both reads the other one only while nothing waits in this one.
URGENT = "campaign-urgent"
QUEUES = (QUEUE, URGENT)
