"""Sizes of stored training states, and the states that a reader restores: nearzip's, ExCP's, and exact ones."""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import numpy as np
import safetensors.numpy
import zstandard

import nearzip as nz
from experiments.lab.peers.excp import nibbles, quantize
from nearzip.torch import Moments, TrainingState
from nearzip.torch.plans import StatePlan

ZSTD, ZSTD_LEVEL = "safetensors + zstd -19", 19
#: Bytes of the weights, of the optimizer's state, and of everything.
Sizes = dict[str, int]


def coded(chain: Sequence[TrainingState], bound: nz.Bound, moments: Moments) -> tuple[TrainingState, Sizes]:
    """The restored last state of a closed loop, and its bytes."""
    base, predictions = None, {}
    for state in chain:
        small = state.shrunk(moments, predictions)
        archive = nz.compress(small.to_arrays(), base, plan=StatePlan.of(small, bound), threads=1)
        before, base = base, archive.restored
    with nz.open(archive.to_bytes(), base=before) as reader:
        reports = reader.tensor_reports()

    def of(part: str) -> int:
        return round(sum(report.n_bytes for report in reports if report.spec.name.startswith(part)))

    sizes = {"weights": of("model/"), "optimizer": of("optimizer/"), "whole": archive.nbytes}
    return TrainingState.from_arrays(archive.restored).expanded(), sizes


def excp_like(chain: Sequence[TrainingState], alpha: float, beta: float = 2.0) -> tuple[TrainingState, Sizes]:
    """After ExCP (Li et al., ICML 2024): 15 centres and zero for what is kept, 4 bits, LZMA.

    A weight's difference is kept where it exceeds `alpha` times the median difference of its tensor, times the median
    of sqrt(v) over its own; moments where the weight is kept and the first moment exceeds `beta` times its mean size.
    Bytes are those of symbols and centres; names and document are not counted.
    """
    held: dict[str, np.ndarray] = {}
    for state in chain:
        restored, symbols, tables = dict(state.tensors), {"weights": [], "optimizer": []}, 0
        for name in sorted(state.parameters):
            parts = _excp_tensor(name, state, held.get(name), alpha, beta)
            for kind, key, (chosen, table) in parts:
                value = table[chosen].reshape(state.tensors[key].shape)
                base = held.get(key, np.float32(0)) if kind == "weights" else np.float32(0)
                restored[key] = np.maximum(value, 0) if key.endswith("_sq") else base + value
                symbols[kind].append(chosen)
                tables += table.nbytes
        held = {name: restored[name] for name in state.parameters}
    found = {key: len(lzma.compress(nibbles(np.concatenate(own)))) if own else 0 for key, own in symbols.items()}
    return TrainingState(restored, chain[-1].document), found | {"whole": sum(found.values()) + tables}


_Part = tuple[str, str, tuple[np.ndarray, np.ndarray]]


def _excp_tensor(name: str, state: TrainingState, base: np.ndarray | None, alpha: float, beta: float) -> list[_Part]:
    """Kind, key, symbols and centres of a parameter and of its moments."""
    prefix = "optimizer/" + name.removeprefix("model/") + "/"
    moments = {key: state.tensors[key].reshape(-1) for key in state.tensors if key.startswith(prefix)}
    moments = {key: value for key, value in moments.items() if value.dtype == np.float32 and not key.endswith("/step")}
    delta = state.tensors[name].reshape(-1) - (0 if base is None else base.reshape(-1))
    roots = next((np.sqrt(value) for key, value in moments.items() if key.endswith("_sq")), None)
    weight = np.ones_like(delta) if roots is None else roots / max(float(np.median(roots)), 1e-30)
    kept = np.abs(delta) * weight > (0.0 if base is None else alpha) * np.median(np.abs(delta))
    out: list[_Part] = [("weights", name, quantize(np.where(kept, delta, 0), 0.0))]
    first = next((value for key, value in moments.items() if not key.endswith("_sq")), None)
    if first is not None:
        kept = kept & (np.abs(first) > beta * np.abs(first).mean())
    return out + [("optimizer", key, quantize(np.where(kept, value, 0), 0.0)) for key, value in moments.items()]


def exact_bytes(state: TrainingState) -> dict[str, Sizes]:
    """Bytes of the floats, and of safetensors packed by zstd at its level 19."""
    own = {n: np.asarray(a) for n, a in state.tensors.items() if np.asarray(a).dtype == np.float32}
    parts = {"weights": "model/", "optimizer": "optimizer/", "whole": ""}
    chosen = {key: {n: a for n, a in own.items() if n.startswith(start)} for key, start in parts.items()}
    return {
        "exact": {key: sum(a.nbytes for a in tensors.values()) for key, tensors in chosen.items()},
        ZSTD: {key: _packed(tensors) for key, tensors in chosen.items()},
    }


def _packed(tensors: dict[str, np.ndarray]) -> int:
    return len(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(safetensors.numpy.save(tensors)))
