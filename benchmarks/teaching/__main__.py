"""The effect of corrections on items that they do not name: ``make bench ARGS=teaching``.

By default, one table shows the effect of a split of two look-alikes (``split.py``). With ``--curve``, two other tables
show the effect of correcting whole pets, by number and kind of corrections (``curve.py``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.quality.sets import BANKING77, draw
from benchmarks.teaching import curve, split
from sploot_cluster.threads import quiet_blas


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.teaching", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--curve", action="store_true", help="measure corrections of whole pets, not splits")
    parser.add_argument("--seed", type=int, default=9_000, help="the first seed")
    parser.add_argument("--draws", type=int, help="seeds: 20, or 4 with --curve")
    parser.add_argument("--banking77", type=Path, default=BANKING77, help="npz of real sentences; skipped if absent")
    given = parser.parse_args()
    with quiet_blas():
        if given.curve:
            seeds = range(given.seed, given.seed + (given.draws or 4))
            print(curve.report(one for seed in seeds for one in draw(seed, banking77=given.banking77)))
        else:
            print(split.report(split.pairs(given.seed, given.draws or 20, banking77=given.banking77)))


if __name__ == "__main__":
    main()
