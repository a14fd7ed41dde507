"""`python -m experiments NAME [options]`: one measurement."""

import importlib
import sys

BENCHES = ("size", "speed", "memory", "fidelity", "page", "tables")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        raise SystemExit(f"usage: bench NAME [options], NAME one of: {', '.join(BENCHES)}")
    importlib.import_module(f"experiments.{sys.argv[1]}").main(sys.argv[2:])


main()
