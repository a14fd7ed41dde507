"""`python -m experiments NAME [options]`: one measurement, or one step of making what is measured."""

import importlib
import sys

from experiments.registry import CLAIMS, COMMANDS, REMOVED, TOOLS


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in REMOVED:
        raise SystemExit(f"bench {name} was removed: {REMOVED[name]}")
    if name not in COMMANDS:
        raise SystemExit(f"usage: bench NAME [options], NAME one of: {', '.join([*TOOLS, *CLAIMS])}")
    module, _, function = COMMANDS[name].partition(":")
    getattr(importlib.import_module(f"experiments.{module}"), function or "main")(sys.argv[2:])


main()
