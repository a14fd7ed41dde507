"""Deep Compression and Weightless on the networks of DeepSZ's tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nearzip as nz
from experiments.papers.deepsz import pruning
from experiments.papers.deepsz.case import Case, Row, measured, two_arrays
from experiments.papers.deepsz.pruning import Tensors
from nearzip.recipes import Hold
from nearzip.stages import Zstd

#: Retraining of centroids, and of the layers behind a filter.
EPOCHS = 2


def figures(case: Case, tensors: Tensors, images: Any, deepsz: Row) -> Row:
    """Figures of Tables 4 and 5, on a pruned network; `deepsz`: its archive by DeepSZ."""
    bits = bits_per_weight(case, tensors, deepsz)
    return {
        "deep_compression": deep_compression(case, tensors, images, 5, EPOCHS),
        "deep_compression_at_our_bits": deep_compression(case, tensors, images, max(1, round(bits)), 0),
        "bits_per_weight": bits,
        "weightless": [weightless(case, tensors, images, n, slot, EPOCHS) for n, slot in ((16, 9), (8, 11))],
        "weightless_without_retraining": weightless(case, tensors, images, 16, 9, 0),
    }


def bits_per_weight(case: Case, tensors: Tensors, deepsz: Row) -> float:
    """Bits per weight of DeepSZ's values, without gaps."""
    n_bytes = sum(deepsz["layers"][name]["bytes"] for name in case.names)
    gaps = sum(len(Zstd().encode(two_arrays(tensors, name)[1].tobytes()).data) for name in case.names)
    return 8 * (n_bytes - gaps) / sum(int((tensors[name] != 0).sum()) for name in case.names)


def retraining(case: Case, images: Any, epochs: int) -> Callable[[Tensors, Hold], Tensors] | None:
    """None: none."""

    def retrain(tensors: Tensors, hold: Hold) -> Tensors:
        rate, seed = case.subject.retraining_rate / 5, case.subject.seed_of(99)
        return pruning.retrained(case.subject, images, tensors, hold, epochs, rate, seed)

    return retrain if epochs else None


def deep_compression(case: Case, tensors: Tensors, images: Any, bits: int, epochs: int) -> Row:
    """`bits` a weight and centroids trained, on the network that DeepSZ's figures use: its pruning is shared."""
    archive = shared(case, tensors, images, bits, epochs)
    return {"bits": bits, "epochs": epochs, **measured(case, archive, tensors)}


def shared(case: Case, tensors: Tensors, images: Any, bits: int, epochs: int) -> nz.Archive:
    """Deep Compression's archive."""
    options = {"keep": dict.fromkeys(case.names, 1.0), "bits": bits}
    retrain = retraining(case, images, epochs)
    return nz.compress(tensors, method="deep-compression", options=options, retrain=retrain, threads=1)


def weightless(case: Case, tensors: Tensors, images: Any, clusters: int, bits: int, epochs: int) -> Row:
    """The largest layer in a filter, those behind retrained; they are stored as they are."""
    layer, archive = largest(case, tensors), filtered(case, tensors, images, clusters, bits, epochs)
    row = measured(case, archive, tensors)
    row["layers"] |= {n: {"bytes": tensors[n].nbytes, "ratio": 1.0} for n in case.names if n != layer}
    fc = sum(stored["bytes"] for stored in row["layers"].values())
    return {
        "clusters": clusters, "bits": bits, "layer": layer, "epochs": epochs,
        "false_positives": archive.report.false_positives[layer], "zeros": int((tensors[layer] == 0).sum()),
        **row, "bytes": fc, "ratio": case.fc_bytes() / fc,
    }  # fmt: skip


def filtered(case: Case, tensors: Tensors, images: Any, clusters: int, bits: int, epochs: int) -> nz.Archive:
    """Weightless's archive."""
    options = {"keep": {largest(case, tensors): 1.0}, "clusters": clusters, "bits": bits}
    retrain = retraining(case, images, epochs)
    return nz.compress(tensors, method="weightless", options=options, retrain=retrain, threads=1)


def largest(case: Case, tensors: Tensors) -> str:
    """The layer that Weightless puts in its filter."""
    return max(case.names, key=lambda name: tensors[name].size)
