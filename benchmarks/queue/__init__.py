"""A comparison of queues: this project's broker, the alternatives that users might choose, and upper bounds.

``make bench ARGS=queue`` or ``python -m benchmarks.queue``. Every contestant runs a pinned release in a separate
environment, on one redis-server that is emptied before each measurement. A round measures every contestant once, in an
order that rotates with the round. Ratios are computed within a round. Medians are printed, with the lowest and the
highest value.

    contestants.py   the contestants, with releases and settings
    environments.py  the contestants' virtual environments
    adapters/        the code with which each contestant enqueues and runs jobs
    tally.py jobs.py the jobs, and their reports to the harness through shared memory
    worker.py producer.py   the measured processes
    measures.py      the measurements
    report.py        tables
"""
