"""Run the fault campaign: ``python -m tests.faults [--short] [--seed N] [--messages N] [NEMESIS …]``.

The last round, ``product``, is the campaign against the whole product (``tests.faults.product``).
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign import run
from tests.faults.nemeses import BY_NAME
from tests.faults.product import __main__ as product
from tests.faults.stage import Stage, WatchedStage

FULL, SHORT = 105_000, 3_000
PRODUCT = "product"
IN_SHORT = ("wire", "kills", "masters", "logs", "operator", "crashes", "priorities", "everything", "failovers")


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults, lose nothing.")
    known = (*BY_NAME, PRODUCT)
    arguments.add_argument("nemeses", nargs="*", metavar="NEMESIS", help=f"any of {', '.join(known)}; default: all")
    arguments.add_argument(
        "--short", action="store_true", help=f"{SHORT} messages and a minute of the product, in about three minutes"
    )
    arguments.add_argument("--messages", type=int, help=f"number of confirmed messages in total; default: {FULL}")
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments.add_argument("--logs", type=Path, help="folder in which to keep the logs of workers and producers")
    chosen = arguments.parse_args()
    unknown = set(chosen.nemeses) - {*known}
    if unknown:
        arguments.error(f"unknown nemesis {', '.join(sorted(unknown))}; expected one of {', '.join(known)}")

    # exit in an orderly way on SIGTERM, so that the pods end too, although they run in separate sessions
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = tuple(chosen.nemeses) or (*(IN_SHORT if chosen.short else BY_NAME), PRODUCT)
    with_product, names = PRODUCT in names, tuple(name for name in names if name != PRODUCT)
    n_messages = chosen.messages or (SHORT if chosen.short else FULL)
    print(f"seed {chosen.seed}: {n_messages} messages in {len(names)} rounds", flush=True)
    outcomes = []
    for kind in (Stage, WatchedStage):
        here = [name for name in names if BY_NAME[name].stage is kind]
        if not here:
            continue
        with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
            directory = Path(temporary) if chosen.logs is None else chosen.logs / kind.__name__
            with kind(directory) as stage:
                outcomes += run(
                    stage,
                    here,
                    n_messages=-(-n_messages // len(names)),
                    seed=chosen.seed,
                    round_s=5 if chosen.short else 20,
                )
    n_confirmed = sum(outcome.verdict.fates.get("confirmed", 0) for outcome in outcomes)
    n_lost = sum(len(outcome.verdict.lost) + len(outcome.lost_meanwhile) for outcome in outcomes)
    n_again = sum(outcome.verdict.reruns for outcome in outcomes)
    is_good = all(outcome.is_good for outcome in outcomes)
    if with_product:
        minutes = product.SHORT_MINUTES if chosen.short else product.FULL_MINUTES
        logs = None if chosen.logs is None else chosen.logs / PRODUCT
        is_good &= product.run(minutes=minutes, seed=chosen.seed, logs=logs)
    result = "good" if is_good else "BAD"
    print(f"{n_confirmed} confirmed, {n_lost} lost, {n_again} ran again; seed {chosen.seed}: {result}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
