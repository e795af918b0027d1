"""The campaign of the whole product: workers, scheduler, HTTP server and client while everything goes wrong.

Usage: ``python -m tests.faults.product [--short] [--minutes 60] [--seed 1] [--logs FOLDER]``

``stage`` starts the processes, ``load`` uploads, corrects, deletes, switches models and exports, ``acts`` breaks
things, and ``judge`` looks up every confirmed event, every correction, every job record and every key at the end.
"""
