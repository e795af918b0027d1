"""Queues side by side: this project's broker, the alternatives that a user might choose, and upper bounds.

``make bench ARGS=queue`` or ``python -m benchmarks.queue``. Every contestant runs in its pinned release, in an
environment of its own, on one redis-server that is emptied before each measurement. A round measures every contestant
once, in an order that rotates with the round. Ratios are computed within a round; medians are printed, with the lowest
and the highest value.

    contestants.py   the contestants, with releases and settings
    environments.py  their virtual environments
    adapters/        how each contestant enqueues and works
    tally.py jobs.py what jobs report to the harness, through shared memory
    worker.py producer.py   the measured processes
    measures.py      the measurements
    report.py        tables
"""
