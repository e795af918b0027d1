"""A program that runs jobs of the Django project and its scheduler, and prints the outcomes that the admin shows.

python -m tests.works_with.django_program
"""

from __future__ import annotations

import json
import threading

import django
import dramatiq
from django.core.management import call_command

django.setup()

from django_dramatiq.models import Task  # noqa: E402  # models need the settings
from dramatiq_crontab import scheduler  # noqa: E402

from tests.support import eventually  # noqa: E402
from tests.works_with.shop.tasks import add, fail  # noqa: E402


def look(outcomes: dict[str, str]) -> bool:
    """Add the outcomes of finished jobs to ``outcomes``; return whether every actor has one."""
    outcomes.update(Task.tasks.filter(status__in=["done", "failed"]).values_list("actor_name", "status"))
    return len(outcomes) == 3


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    # before the worker starts: on every broker, the admin records a job as enqueued after it was sent, which may be
    # after it has ended
    fail.send()
    sum_of_two = add.send(2, 3)
    worker = dramatiq.Worker(dramatiq.get_broker(), worker_timeout=50, worker_threads=1)
    worker.start()
    threading.Thread(target=scheduler.start, daemon=True).start()
    seen: dict[str, str] = {}
    eventually(lambda: look(seen), within_s=30)
    print(json.dumps({"result": sum_of_two.get_result(), "outcomes": seen}))
    worker.stop()
