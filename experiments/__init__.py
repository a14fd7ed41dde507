"""Measurements behind the project's claims. `scripts/bench NAME` runs one and writes `results/NAME.json`."""
