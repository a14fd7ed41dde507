"""DeepSZ's Figure 7: how long each method takes to encode and to decode a pruned network, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import nearzip as nz
from experiments.papers.deepsz import others as deepsz_others
from experiments.papers.deepsz import pruning
from experiments.papers.deepsz.case import Case, Row, compressed
from experiments.papers.deepsz.pruning import Tensors
from experiments.papers.deepsz.rule import MARGIN, METHODS, careful, left, search

#: Of decoding, and for how long: waking a child process takes from 0.3 to 5 ms, which few rounds do not average out.
_ROUNDS, _SECONDS = 15, 1.5


def times(case: Case, images: Any) -> Row:
    """Seconds to encode, milliseconds to decode, with the paper's shares; pruning is common to all and left out."""
    tensors = pruning.pruned(case.subject, images)["paper"].tensors
    seconds: dict[str, float] = {}
    archives: dict[str, nz.Archive] = {}
    evaluator = careful(case, tensors, MARGIN)
    budget = max(0.0, left(case, tensors, evaluator))
    # The layers before the pruned ones run once, for tests and for training.
    pruning.features(case.subject, tensors, images.train)
    for method in METHODS:
        seconds[method], plan = _timed(lambda method=method: search(case, tensors, method, evaluator, budget))  # type: ignore[misc]
        bounds = {name: bound.value for name in case.names if hasattr(bound := plan.codings[name].bound, "value")}
        archives[method] = compressed(method, tensors, bounds)
    others: Mapping[str, Callable[[], Any]] = {
        "deep-compression": lambda: deepsz_others.shared(case, tensors, images, 5, deepsz_others.EPOCHS),
        "weightless": lambda: deepsz_others.filtered(case, tensors, images, 16, 9, deepsz_others.EPOCHS),
    }
    for method, work in others.items():
        seconds[method], _ = _timed(work)
    layer = deepsz_others.largest(case, tensors)
    return {"encode_s": seconds, "decode_ms": _decoding(case, tensors, archives, layer), "filtered": layer}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def _decoding(case: Case, tensors: Tensors, archives: Mapping[str, nz.Archive], layer: str) -> Row:
    options = {"keep": 1.0, "bits": 5}
    layers = {name: tensors[name] for name in case.names}
    shared = nz.compress(layers, method="deep-compression", options=options, threads=1)
    filtered = nz.compress({layer: tensors[layer]}, method="weightless", options={"keep": 1.0}, threads=1)
    rows: Row = {method: _parts(archive) for method, archive in {**archives, "deep-compression": shared}.items()}
    return rows | {"weightless": {"whole": _whole(filtered)}, "forward": _forward(case, tensors)}


def _median(work: Callable[[], Any]) -> float:
    """Milliseconds, the first round left out."""
    return 1000 * float(np.median([seconds for seconds, _ in _repeated(work)][1:]))


def _repeated(work: Callable[[], Any]) -> list[tuple[float, Any]]:
    """Seconds and results of many rounds."""
    begin, rounds = time.perf_counter(), []
    while len(rounds) <= _ROUNDS or time.perf_counter() - begin < _SECONDS:
        rounds.append(_timed(work))
    return rounds


def _whole(archive: nz.Archive) -> float:
    with nz.open(archive, threads=1) as reader:
        return _median(lambda: [reader[name] for name in reader])


def _parts(archive: nz.Archive) -> dict[str, float]:
    """Times of the gaps, the values and the matrix of all layers, and of decoding them all."""
    with nz.open(archive, threads=1) as reader:
        rounds = [list(row.values()) for _, row in _repeated(reader.decode_times)]
    parts = {
        key: 1000 * float(np.median([sum(getattr(times, key) for times in row) for row in rounds]))
        for key in ("gaps", "values", "matrix")
    }
    return {**parts, "whole": _whole(archive)}


def _forward(case: Case, tensors: Tensors) -> float:
    """Time of a forward pass of 50 images."""
    import torch

    module, images = pruning.load(case.subject, tensors), torch.zeros(50, 1, 28, 28)
    with torch.no_grad():
        return _median(lambda: module(images))
