"""The campaign against the whole product: workers, scheduler, HTTP server and client while faults are injected.

Usage: ``python -m tests.faults.product [--short] [--minutes 60] [--seed 1] [--logs FOLDER]``

``stage`` starts the processes, ``load`` uploads, corrects, deletes, switches models and exports, ``acts`` injects the
faults, and ``judge`` checks every confirmed event, every correction, every job record and every key at the end.
"""
