"""A benchmark of the main job under load: from XADD to the committed assignment, with real worker processes.

``make bench ARGS=pipeline`` or ``python -m benchmarks.pipeline``. Pets that already have items and clusters receive
flat events of 512 values. The workers run the unmodified command with ``tasks.worker``, except that their store also
records when the reply to each commit arrived. Redis keeps its append-only file as in production.

    pets.py      the pets, written directly to the store, and events that resemble their items
    stamps.py    the times at which each event was sent and committed, in shared memory
    worker.py    tasks.worker with these stamps
    plan.py      the measurements
    measures.py  how each is measured
    report.py    tables
"""
