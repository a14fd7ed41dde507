"""A network of DeepSZ's tables: sizes of its fully connected layers in an archive, and its loss of accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip as nz
from experiments.papers.deepsz import pruning
from experiments.papers.deepsz.pruning import Evaluator, Subject, Tensors, paired
from nearzip.stages import Chain, Context, Rans, RawBytes, Sparse

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, its original, and its evaluators."""

    subject: Subject
    original: Tensors
    validation: Evaluator
    test: Evaluator

    @property
    def names(self) -> list[str]:
        """The weights of the fully connected layers."""
        return [tensor for _, tensor in self.subject.layers]

    def tail(self, tensors: Tensors) -> Tensors:
        """The fully connected layers with their biases: what archives hold."""
        return {name: a for name, a in tensors.items() if int(name.split(".")[0]) >= self.subject.tail}

    def fc_bytes(self) -> int:
        return sum(self.original[name].nbytes for name in self.names)


def layer_bytes(archive: nz.Archive) -> dict[str, int]:
    """Bytes of each tensor's block, without the archive's header and index."""
    with nz.open(archive) as reader:
        return {report.spec.name: round(report.n_bytes) for report in reader.tensor_reports()}


def kept(tensors: Tensors, names: list[str]) -> dict[str, float]:
    return {name: float((tensors[name] != 0).mean()) for name in names}


def case_of(subject: Subject, images: Any) -> Case:
    original = pruning.original(subject, images).tensors
    return Case(subject, original, Evaluator(subject, images.validation), Evaluator(subject, images.test))


def compressed(method: str, tensors: Tensors, bounds: Mapping[str, float]) -> nz.Archive:
    """The layers of `bounds` under their bounds. They are pruned already: all nonzero weights are kept."""
    layers = {name: tensors[name] for name in bounds}
    named = {name: nz.Absolute(bound) for name, bound in bounds.items()}
    return nz.compress(layers, method=method, bound=named, options={"keep": 1.0}, threads=1)


def evaluated(case: Case, tensors: Tensors) -> Row:
    """Accuracies on both sets of images, and what was lost of the original's."""
    row: Row = {}
    for name, evaluator in (("validation", case.validation), ("test", case.test)):
        lost = paired(evaluator.right(case.original), evaluator.right(tensors))
        row |= {name: evaluator(tensors), f"{name}_loss": lost.loss, f"{name}_error": lost.error}
    return row


def measured(case: Case, archive: nz.Archive, tensors: Tensors) -> Row:
    """Sizes and accuracies of a network whose layers an archive holds, restored from its bytes."""
    sizes = layer_bytes(archive)
    fc = sum(sizes[name] for name in case.names)
    return {
        "layers": {name: {"bytes": sizes[name], "ratio": tensors[name].nbytes / sizes[name]} for name in case.names},
        "bytes": fc, "ratio": case.fc_bytes() / fc, "archive_bytes": archive.nbytes, "archive_ratio": archive.ratio,
        **evaluated(case, {**tensors, **nz.decompress(archive.to_bytes())}),
    }  # fmt: skip


def at_bounds(case: Case, tensors: Tensors, bounds: Mapping[str, float]) -> Row:
    """DeepSZ with bounds that no search of ours chose."""
    row = measured(case, compressed("deepsz", tensors, bounds), tensors)
    return {"method": "deepsz", "bounds": dict(bounds), **row}


# ---- DeepSZ's two arrays ---------------------------------------------------------------------------------------


def two_arrays(tensors: Tensors, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and gaps of a layer before coding, paddings among them."""
    flat = tensors[name].reshape(-1)
    (values, gaps), *_ = Sparse(Chain((RawBytes(),)), Chain((Rans(),))).split(flat, Context.of(flat))
    return values, gaps


def csr_bytes(tensors: Tensors, name: str) -> int:
    """5 bytes for each weight and padding."""
    return 5 * int(two_arrays(tensors, name)[0].size)
