"""Neighbouring versions that the fidelity bench runs over: of the shared traces and of the cached quick set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from experiments.lab import trace_sets, traces
from experiments.lab.traces import Tensors

#: Absolute errors that leave a divergence between 1e-4 and 1e-3 on the shared traces.
_UNITS = {"transformer early": 1.8e-3, "transformer late": 2e-4, "vgg-small early": 1e-3, "vgg-small late": 1e-3}
_QUICK = "quick "
#: Of the quick set, the pair's last version and the one before.
NAMES = (*_UNITS, *(f"{_QUICK}{settings.network}" for settings in trace_sets.SETS["quick"]))


@dataclass(frozen=True)
class Pair:
    """An older and a newer version of one network; `unit` is an absolute error to sweep around."""

    name: str
    network: str
    old: Tensors
    new: Tensors
    unit: float


def _rms(old: Tensors, new: Tensors) -> float:
    moved = [(new[n].astype(np.float64) - w).reshape(-1) for n, w in old.items() if w.dtype.kind == "f"]
    return float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))


def load(name: str, shared: Path) -> Pair:
    """A pair by name. Raises FileNotFoundError for a pair of the quick set that was not trained yet."""
    if not name.startswith(_QUICK):
        old, new = traces.pair(shared, name)
        return Pair(name, traces.PAIRS[name][0].split("/")[0], old, new, _UNITS[name])
    network = name.removeprefix(_QUICK)
    files = trace_sets.version_files(trace_sets.traces_folder() / "quick" / network)
    if len(files) < 2:
        raise FileNotFoundError(
            f"no trace of {network} in the quick set; run: python -m experiments traces --set quick"
        )
    old, new = load_file(files[-2]), load_file(files[-1])
    # Half the size of the update: enough levels to matter, few enough to be an update worth sending.
    return Pair(name, network, old, new, float(f"{_rms(old, new) / 2:.2g}"))
