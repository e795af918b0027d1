"""The module of the stock commands: ``dramatiq tasks.worker`` and ``periodiq tasks.worker``.

On import, it builds the broker from the environment and declares every actor. It opens no connection.
"""

from __future__ import annotations

import os

from sploot_cluster.threads import one_thread_each

# numpy and faiss read these variables on their first import, so they are set before any other import
one_thread_each(os.environ)

import dramatiq

from tasks.composition import build_worker
from tasks.observe.error_reports import configure_error_reports
from tasks.observe.logs import configure_logging
from tasks.observe.metrics import share_values
from tasks.settings import Settings

settings = Settings.from_env(os.environ)
configure_logging(settings.log_level)
shared = share_values()
configure_error_reports(settings)
broker = build_worker(settings, shared=shared)
dramatiq.set_broker(broker)
