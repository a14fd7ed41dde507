"""`python -m experiments NAME [options]`: one measurement, or one step of making what is measured."""

import importlib
import sys

#: Command: the module whose `main` it is.
COMMANDS = {
    "agreement": "claims.bits.agreement", "bound_truth": "claims.trust.bound_truth", "budget": "claims.budget.budget",
    "calibration": "claims.calibration.calibration", "damage": "claims.trust.damage",
    "damage_peers": "claims.trust.damage_peers", "deepsz": "papers.deepsz.measure",
    "delta_dnn": "papers.delta_dnn.measure", "feedback": "papers.qd.feedback",
    "feedback_time": "papers.qd.feedback_time", "fidelity": "claims.bits.fidelity", "lattices": "claims.bits.lattices",
    "lossless": "claims.bits.lossless", "memory": "claims.speed.memory", "page": "docs.results_page",
    "papers": "docs.papers", "qd_compressor": "papers.qd.measure", "rates": "claims.bits.rates",
    "repeat": "claims.bits.repeat", "resume": "claims.resume.resume", "save_cost": "claims.resume.save_cost",
    "save_memory": "claims.resume.save_memory", "size": "claims.bits.size", "speed": "claims.speed.speed",
    "store": "claims.store.store", "store_faults": "claims.store.store_faults", "store_page": "docs.store_page",
    "tables": "docs.tables", "throughput": "claims.speed.throughput", "trace_times": "lab.trace_times",
    "traces": "lab.trace_sets", "train": "lab.train", "training_page": "docs.training_page",
    "transmission": "claims.store.transmission", "tried": "claims.calibration.tried",
}  # fmt: skip


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: bench NAME [options], NAME one of: {', '.join(COMMANDS)}")
    importlib.import_module(f"experiments.{COMMANDS[sys.argv[1]]}").main(sys.argv[2:])


main()
