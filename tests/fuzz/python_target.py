"""Run one Python target: under atheris (guided by coverage) if it is installed, else by plain mutation of its corpus.

python_target.py TARGET libFuzzer-arguments..
"""

from __future__ import annotations

import base64
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import targets

try:
    import atheris
except ImportError:
    atheris = None

_ADDRESS_SPACE = 4 << 30
_SECONDS_PER_INPUT = 10


def _mutate(seeds: list[bytes], rng: np.random.Generator, most: int) -> bytes:
    data = bytearray(seeds[rng.integers(len(seeds))]) if rng.random() < 0.95 else bytearray(rng.bytes(64))
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(data) + 1))
        action = rng.integers(6)
        if action == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif action == 1 and at < len(data):
            data[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        elif action == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif action == 3:
            del data[at : at + int(rng.integers(1, 9))]
        elif action == 4:
            other = seeds[rng.integers(len(seeds))]
            data[at:] = other[int(rng.integers(len(other) + 1)) :]
        else:
            data[at:at] = data[: int(rng.integers(17))]
    return bytes(data[:most])


def _functions(owner: ModuleType | type) -> Iterator[FunctionType]:
    for value in vars(owner).values():
        value = getattr(value, "fget", getattr(value, "__func__", value))
        if isinstance(value, FunctionType) and value.__module__.startswith("nearzip"):
            yield value
        elif isinstance(value, type) and isinstance(owner, ModuleType) and value.__module__ == owner.__name__:
            yield from _functions(value)


def _instrument() -> None:
    """Our functions only, after their import: an editable install is imported past the hooks of atheris."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "nearzip"]
    for function in {function for module in modules for function in _functions(module)}:
        atheris.instrument_func(function)


def _blind(target: Callable[[bytes], None], arguments: list[str]) -> None:
    """No atheris: seeded mutations of the corpus, blind to coverage, with libFuzzer's arguments and last lines."""
    options = dict(a.lstrip("-").split("=") for a in arguments if a.startswith("-"))
    folders = [Path(a) for a in arguments if not a.startswith("-")]
    seeds = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())] or [b"\0" * 16]
    rng = np.random.default_rng(int(options.get("seed", 1)))
    end = time.monotonic() + float(options["max_total_time"])
    n = 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process: too slow an input is a finding
    while time.monotonic() < end:
        data = _mutate(seeds, rng, int(options.get("max_len", 4096)))
        signal.alarm(_SECONDS_PER_INPUT)
        try:
            target(data)
        except BaseException:
            traceback.print_exc()
            print("Base64:", base64.b64encode(data).decode(), file=sys.stderr)
            raise SystemExit(77) from None
        signal.alarm(0)
        n += 1
    print(f"stat::number_of_executed_units: {n}", file=sys.stderr)


def main() -> None:
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    target = targets.PYTHON[sys.argv[1]]
    if atheris is None:
        _blind(target, sys.argv[2:])
        return
    targets.seeds()  # made before anything counts
    _instrument()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
