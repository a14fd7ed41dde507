"""Versions of trained networks to measure on: the shared traces, the cached quick set, or stand-ins; and the cache.

Only the names of the quick set need PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]


#: Neighbouring versions: name, older file, newer file, absolute bounds that suit them.
PAIRS = {
    "transformer early": ("transformer/00250", "transformer/00300", (2.5e-4, 1e-3)),
    "transformer late": ("transformer/00900", "transformer/00950", (1e-4, 2.5e-4)),
    "vgg-small early": ("vgg-small/006", "vgg-small/007", (1e-3, 2.5e-3)),
    "vgg-small late": ("vgg-small/008", "vgg-small/009", (2.5e-3, 1e-2)),
}


#: SHA-256 of the shared traces' files, which the published figures are measured on.
CHECKSUMS = {
    "transformer/00250": "ecfe2c399bee1fbfdee20711e5bd289a1a9688ddeca4e98adbea9e7b7a83c379",
    "transformer/00300": "55f5a69a34162b8969bbf5ba7e9159fe034888b124769eafdc41bd88a104e41d",
    "transformer/00900": "1daaf85204fc34cecde55c5e38d1e30b9c2ffc5c5883d5073b71119e20174837",
    "transformer/00950": "c94c63c6b111a10136f80bf3f361abfc25c2256ec994d7f2b3a4e20868953b59",
    "vgg-small/006": "f414ad3a5b5b93dd6d7cbed13363c629ed495ed4b4f51508a14e91794c932113",
    "vgg-small/007": "4351a3a2989393e22219ce7fc3b4a0436269cf61387dd7e683e94945d0583159",
    "vgg-small/008": "17e171eaf036f5936baebd3fc028bc4fb174aae071b8b0cb1d5a653475507efd",
    "vgg-small/009": "52ea5ddc8ea0fc6b631b333747b828a3cd9cfab3d4c6012cde2b2a6b6e7b22ae",
}
#: Absolute errors that leave a divergence between 1e-4 and 1e-3 on the shared traces.
_UNITS = {"transformer early": 1.8e-3, "transformer late": 2e-4, "vgg-small early": 1e-3, "vgg-small late": 1e-3}
_QUICK = "quick "


@dataclass(frozen=True)
class Pair:
    """An older and a newer version of one network; `unit` is an absolute error to sweep around."""

    name: str
    network: str
    old: Tensors
    new: Tensors
    unit: float


def cache_folder() -> Path:
    """The folder of the experiments' caches: NEARZIP_CACHE or ~/.cache/nearzip-bench."""
    folder = Path(os.environ.get("NEARZIP_CACHE") or Path.home() / ".cache" / "nearzip-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder(given: str | None) -> Path | None:
    """Where the traces are: --data DIR, NEARZIP_DATA, or its sibling `traces`; None if nowhere."""
    place = given or os.environ.get("NEARZIP_DATA")
    if place is None:
        return None
    candidates = [Path(place), Path(place) / "traces", Path(place).parent / "traces"]
    return next((c for c in candidates if (c / "transformer" / "00900.safetensors").is_file()), None)


def differing(where: Path) -> list[str]:
    """Files of the shared traces that are missing or are not those of the published figures."""
    found = []
    for name, expected in CHECKSUMS.items():
        path = where / f"{name}.safetensors"
        if not path.is_file():
            found.append(f"{path}: missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            found.append(f"{path}: another training than that of the published figures")
    return found


def pair(where: Path, name: str) -> tuple[Tensors, Tensors]:
    """The older and the newer version of a pair."""
    older, newer, _ = PAIRS[name]
    return load_file(where / f"{older}.safetensors"), load_file(where / f"{newer}.safetensors")


def tiled(where: Path | None, n_bytes: int = 50_000_000) -> tuple[str, Tensors, Tensors]:
    """At least `n_bytes` of weights in two versions: the late transformer again and again, or made-up weights.

    Every copy differs by noise far below the bound, so that no tensor equals another.
    """
    rng = np.random.default_rng(0)
    if where is not None:
        source = "transformer late, tiled"
        old, new = pair(where, "transformer late")
    else:
        source = "made up: normal weights, Laplace updates"
        old = {f"layer.{i}": rng.normal(0, 0.05, (192, 768)).astype(np.float32) for i in range(12)}
        new = {name: (w + rng.laplace(0, 1.2e-4, w.shape)).astype(np.float32) for name, w in old.items()}
    copies = -(-n_bytes // sum(w.nbytes for w in new.values()))
    first, second = {}, {}
    for copy in range(copies):
        for name, weights in old.items():
            noise = rng.normal(0, 1e-7, weights.shape).astype(np.float32)
            first[f"{copy}.{name}"] = weights + noise
            second[f"{copy}.{name}"] = new[name] + noise
    return source, first, second


def pair_names() -> tuple[str, ...]:
    """The pairs of the shared traces, then of the quick set each network's last two versions."""
    from experiments.lab import trace_sets

    return (*_UNITS, *(f"{_QUICK}{settings.network}" for settings in trace_sets.SETS["quick"]))


def load_pair(name: str, shared: Path) -> Pair:
    """A pair by name. Raises FileNotFoundError for a pair of the quick set that was not trained yet."""
    if not name.startswith(_QUICK):
        old, new = pair(shared, name)
        return Pair(name, PAIRS[name][0].split("/")[0], old, new, _UNITS[name])
    from experiments.lab import trace_sets

    network = name.removeprefix(_QUICK)
    files = trace_sets.version_files(trace_sets.traces_folder() / "quick" / network)
    if len(files) < 2:
        raise FileNotFoundError(
            f"no trace of {network} in the quick set; run: python -m experiments traces --set quick"
        )
    old, new = load_file(files[-2]), load_file(files[-1])
    # Half the size of the update: enough levels to matter, few enough to be an update worth sending.
    return Pair(name, network, old, new, float(f"{_rms(old, new) / 2:.2g}"))


def _rms(old: Tensors, new: Tensors) -> float:
    moved = [(new[n].astype(np.float64) - w).reshape(-1) for n, w in old.items() if w.dtype.kind == "f"]
    return float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench check_traces", description=differing.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the shared traces")
    found = differing(parser.parse_args(arguments).folder)
    raise SystemExit("\n".join(found) or None)
