"""The main job under load: from XADD to the committed assignment, with real worker processes.

``make bench ARGS=pipeline`` or ``python -m benchmarks.pipeline``. Pets that have their media and clusters already
receive flat events of 512 values; every worker is the stock command on ``tasks.worker``, whose store also notes when
each commit was answered. Redis keeps its append-only file as in production.

    pets.py      the pets, written straight into the store, and events that look like their media
    stamps.py    when each event was sent and committed, in shared memory
    worker.py    tasks.worker with those notes
    plan.py      what is measured
    measures.py  one measurement each
    report.py    tables
"""
