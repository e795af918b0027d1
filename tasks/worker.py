"""The module of the stock commands: ``dramatiq tasks.worker`` and ``periodiq tasks.worker``.

Importing it builds the broker from the environment and declares every actor; no connection is opened.
"""

from __future__ import annotations

import os

# One thread of native code per worker thread: Dramatiq's threads fill the cores already, and BLAS and OpenMP would each
# start as many again. Read by numpy, scipy and faiss when they are first imported, hence before everything else.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import dramatiq

from tasks.composition import build_worker
from tasks.logs import configure_logging
from tasks.metrics import share_values
from tasks.settings import Settings

settings = Settings.from_env(os.environ)
configure_logging(settings.log_level)
share_values()
broker = build_worker(settings)
dramatiq.set_broker(broker)
