"""`python -m experiments NAME [options]`: one measurement, or one step of making what is measured."""

import importlib
import sys

#: Command: the module whose `main` it is.
_SAME = (
    "agreement", "bound_truth", "budget", "damage", "damage_peers", "damaged_many", "deepsz", "delta_dnn", "fidelity",
    "lattices", "lossless", "memory", "page", "papers", "qd_compressor", "rates", "repeat", "size", "speed", "store",
    "store_faults", "store_page", "tables", "throughput", "trace_times", "train", "transmission",
)  # fmt: skip
#: docs/resume.md.
_TRAINING = ("feedback", "feedback_time", "resume", "save_cost", "save_memory", "training_page")
COMMANDS = dict(zip(_SAME + _TRAINING, _SAME + _TRAINING, strict=True)) | {
    "traces": "trace_sets",
    "calibration": "calibration",
    "tried": "tried",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: bench NAME [options], NAME one of: {', '.join(COMMANDS)}")
    importlib.import_module(f"experiments.{COMMANDS[sys.argv[1]]}").main(sys.argv[2:])


main()
