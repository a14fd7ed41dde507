"""Ten thousand random pairs of checkpoints by every way in: every promise kept, none larger than what is at hand.

The long form of `tests/test_promises.py`, written down with its circumstances. Failures are written down as well.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import Counter
from collections.abc import Callable

from experiments.lab import record
from nearzip.testing.pairs import Pair, random_pair
from nearzip.testing.promises import ENTRANCES, check_pair
from nearzip.testing.trainings import TRAININGS, check_training

#: Of every ten pairs, how many take each way in; the others go through `compress`.
_TURNS = {"files": 1, "store": 1, "saver": 1, "dcp": 1}


def _entrance(seed: int) -> str:
    turns = [name for name, n in _TURNS.items() for _ in range(n)]
    return turns[seed % 10] if seed % 10 < len(turns) else "compress"


def _checks() -> dict[str, Callable[[Pair], object]]:
    by_codec = {name: functools.partial(check_pair, entrance=name) for name in ENTRANCES}
    return by_codec | {name: functools.partial(check_training, entrance=name) for name in TRAININGS}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench promises", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first pair's number")
    chosen = parser.parse_args(arguments)
    checks, entrances, methods = _checks(), Counter[str](), Counter[str]()
    failures: list[str] = []
    begin = time.process_time()
    for seed in range(chosen.first, chosen.first + chosen.pairs):
        pair, entrance = random_pair(seed), _entrance(seed)
        entrances[entrance] += 1
        methods[pair.method] += 1
        try:
            checks[entrance](pair)
        except Exception as error:  # an unnamed error is a broken promise like any other
            failures.append(f"{seed} {entrance} {type(error).__name__}: {error}"[:400])
            print(failures[-1], flush=True)
    found = {
        "pairs": chosen.pairs,
        "first": chosen.first,
        "entrances": dict(sorted(entrances.items())),
        "methods": dict(sorted(methods.items())),
        "failures": failures,
        "processor_seconds": round(time.process_time() - begin, 1),
    }
    record.save("promises", found, ("nearzip", "numpy", "torch", "zstandard"))
    if failures:
        raise SystemExit(f"{len(failures)} of {chosen.pairs} pairs failed")
