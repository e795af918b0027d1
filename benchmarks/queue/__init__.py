"""Queues side by side: this project's broker, those that a user would pick instead, and the ceilings.

``make bench ARGS=queue`` or ``python -m benchmarks.queue``. Every contestant runs in the newest release that its pins
name, in an environment of its own, on one redis-server that is emptied before each measurement. A round measures every
contestant once, in an order that turns with the round; ratios are taken within a round, and what is printed are medians
with the lowest and the highest.

    contestants.py   who takes part, in which version, with which settings
    environments.py  their virtual environments
    adapters/        how each of them enqueues and works
    tally.py jobs.py what jobs tell the harness, through shared memory
    worker.py producer.py   the processes that are measured
    measures.py      one measurement each
    report.py        tables
"""
