"""What was tried in calibration, kept or not: bits at equal divergence, each change alone, on two networks.

Every variant is swept over the step; bits are those of whole files, divergence is judged on held-out data, and the
table shows bits at a divergence of 3e-4, interpolated between neighbours on logarithmic axes. Biases and norms are not
tuned unless the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

import nearzip as nz
from experiments import calibrating, evaluate, record, trace_sets, traces
from nearzip.archive import write_archive
from nearzip.bounds import NoPromise
from nearzip.calibrate import rounder as subject
from nearzip.calibrate.api import _settings, _targets
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.rounder import Rounder
from nearzip.calibrate.rounding import Factor
from nearzip.calibrate.sensitivity import Sensitivity, gather
from nearzip.calibrate.settings import Damping
from nearzip.tensors import Array, Checkpoint

_PAIRS = ("transformer late", "vgg-small late")
_KL = 3e-4


@dataclass(frozen=True)
class Case:
    """A pair of versions, its sensitivity, and who judges."""

    old: traces.Tensors
    new: traces.Tensors
    predictor: Predictor
    sensitivity: Sensitivity
    judge: evaluate.Evaluator

    def calibration(self, damping: Damping | None = None, sensitivity: Sensitivity | None = None) -> Rounder:
        floats = {n: w for n, w in self.new.items() if w.dtype == np.float32}
        return Rounder(
            self.predictor, sensitivity or self.sensitivity, floats, self.old, NoPromise(), damping or Damping()
        )

    def point(self, calibration: Rounder, step: float, tuned: bool = False) -> tuple[float, float]:
        """Bits per parameter and divergence."""
        rounded = calibration.round(step, tuned)
        source, base, stream = Checkpoint.of(self.new), Checkpoint.of(self.old), io.BytesIO()
        restored: dict[str, Array] = {}
        settings = _settings(step, rounded, NoPromise(), source.specs)
        write_archive(source, base, settings, stream, restored.__setitem__, 1, None, _targets(source, rounded))
        return self.judged(len(stream.getvalue()), restored)

    def judged(self, n_bytes: int, restored: dict[str, Array]) -> tuple[float, float]:
        n = sum(w.size for w in self.new.values())
        return 8 * n_bytes / n, self.judge.compare(restored).kl


Sweep = Callable[[Case, float], tuple[float, float]]


# ---- variants --------------------------------------------------------------------------------------------------


def plain(case: Case, step: float) -> tuple[float, float]:
    archive = nz.compress(case.new, case.old, bound=nz.Absolute(step / 2), threads=1)
    return case.judged(archive.nbytes, archive.restored)


def drawn(share: float) -> Sweep:
    """Plain rounding, but levels stand for values that much of a step nearer to zero (a file would say how much)."""

    def run(case: Case, step: float) -> tuple[float, float]:
        archive = nz.compress(case.new, case.old, bound=nz.Absolute(step / 2), threads=1)
        restored = {}
        for name, value in archive.restored.items():
            moved = value.astype(np.float64) - case.old[name]
            nearer = case.old[name] + np.sign(moved) * np.maximum(np.abs(moved) - share * step, 0)
            restored[name] = nearer.astype(value.dtype) if value.dtype == np.float32 else value
        return case.judged(archive.nbytes, restored)

    return run


def finer(parts: int) -> Sweep:
    """Plain rounding, with steps of biases and norms that many times finer."""

    def run(case: Case, step: float) -> tuple[float, float]:
        small = {n: nz.Absolute(step / 2 / parts) for n, w in case.new.items() if w.ndim < 2 and w.dtype == np.float32}
        archive = nz.compress(case.new, case.old, bound={**small, "*": nz.Absolute(step / 2)}, threads=1)
        return case.judged(archive.nbytes, archive.restored)

    return run


def built(damping: Damping | None = None, tuned: bool = False) -> Sweep:
    def run(case: Case, step: float) -> tuple[float, float]:
        return case.point(case.calibration(damping), step, tuned)

    return run


def changed(change: Callable[[Rounder], None]) -> Sweep:
    """With factors or steps changed after they were made."""

    def run(case: Case, step: float) -> tuple[float, float]:
        calibration = case.calibration()
        change(calibration)
        return case.point(calibration, step)

    return run


def _flat(factor: Factor) -> Factor:
    """Nothing is carried; the cost on average as it was."""
    n = factor.order.size
    return Factor(np.arange(n), np.full(n, math.exp(-factor.log_cost / 2), np.float32))


def columns_only(calibration: Rounder) -> None:
    calibration._factors = {
        p: ([_flat(f) for f in rows], columns) for p, (rows, columns) in calibration._factors.items()
    }


def rows_only(calibration: Rounder) -> None:
    calibration._factors = {
        p: (rows, [_flat(f) for f in columns]) for p, (rows, columns) in calibration._factors.items()
    }


def one_step(calibration: Rounder) -> None:
    costs = calibration.steps.costs
    mean = calibration.steps._mean
    calibration.steps = replace(
        calibration.steps, costs={n: replace(c, log_cost=mean if c.carried else c.log_cost) for n, c in costs.items()}
    )


def ordered(sign: int) -> Sweep:
    """Gone through from the most energy to the least (-1), or as the places stand (0)."""

    def run(case: Case, step: float) -> tuple[float, float]:
        sort = torch.argsort

        def argsort(energy: torch.Tensor, stable: bool = True) -> torch.Tensor:
            return sort(-energy, stable=True) if sign else torch.arange(len(energy))

        torch.argsort = argsort  # type: ignore[assignment]
        try:
            calibration = case.calibration()
        finally:
            torch.argsort = sort
        return case.point(calibration, step)

    return run


def with_batches(n: int) -> Sweep:
    def run(case: Case, step: float) -> tuple[float, float]:
        name = calibrating.network_of(case.new) or ""
        predictor = Predictor(case.predictor.module, calibrating.batches_of(name, n=n))
        return case.point(case.calibration(sensitivity=_gathered(predictor)), step)

    return run


_KNOWN: dict[int, Sensitivity] = {}


def _gathered(predictor: Predictor) -> Sensitivity:
    return _KNOWN.setdefault(len(predictor.batches), gather(predictor))


def from_rounded(case: Case, step: float) -> tuple[float, float]:
    """Moments gathered in the network as it was rounded once already."""
    rounded = case.calibration().round(step, fitted=False)
    name = calibrating.network_of(case.new) or ""
    predictor = Predictor(calibrating.loaded(name, {**case.new, **rounded.tensors}), case.predictor.batches)
    return case.point(case.calibration(sensitivity=gather(predictor)), step)


def shrunk(share: float) -> Sweep:
    """Differences first drawn towards zero where the network hardly notices: each coefficient in the eigenbasis of the
    moments by h / (h + share * cost of the step)."""

    def shrink(target: Array, calibration: Rounder, piece: Any, group: int, step: float) -> Array:
        weighed = calibration.sensitivity.pieces[piece]
        if weighed.rows.is_diagonal or weighed.columns.is_diagonal:
            return target
        rows, columns = (torch.linalg.eigh(g.values[group].double()) for g in (weighed.rows, weighed.columns))
        h = rows[0].clamp_min(0)[:, None] * columns[0].clamp_min(0)[None]
        noise = share * step**2 * math.exp(calibration.steps._mean) / np.square(target).mean()
        inside = (rows[1].T @ torch.from_numpy(target.astype(np.float64)) @ columns[1]) * (h / (h + noise))
        return (rows[1] @ inside @ columns[1].T).numpy()

    def run(case: Case, step: float) -> tuple[float, float]:
        calibration = case.calibration()
        pieces = {id(f): (p, g) for p, (rows, _) in calibration._factors.items() for g, f in enumerate(rows)}
        usual = subject.round_matrix

        def round_shrunk(target: Array, rows: Factor, columns: Factor, own: float, reach: float) -> Array:
            piece, group = pieces[id(rows)]
            return usual(shrink(target, calibration, piece, group, step), rows, columns, own, reach)

        with _rounding(round_shrunk):
            return case.point(calibration, step)

    return run


def rated(weight: float) -> Sweep:
    """Levels chosen by error and bits together: the next one towards zero and zero itself compete, at `weight` times
    the price of a bit that high-resolution theory gives."""

    def run(case: Case, step: float) -> tuple[float, float]:
        with _rounding(lambda *arguments: _round_rated(weight, *arguments)):
            return case.point(case.calibration(), step)

    return run


def _round_rated(weight: float, target: Array, rows: Factor, columns: Factor, step: float, reach: float) -> Array:
    """As `round_matrix`, plainly, with the price of a level in its choice."""
    upper = [f.tile(0, f.order.size).astype(np.float64) for f in (rows, columns)]
    v, u = upper
    ordered_target = target[rows.order][:, columns.order].astype(np.float64)
    price = _prices(np.rint(ordered_target / step))
    n, m = ordered_target.shape
    levels, remainders = np.zeros((n, m)), np.zeros((n, m))
    mean_cost = math.exp(rows.log_cost + columns.log_cost)
    toll = weight * step**2 * math.log(2) / 6 * mean_cost
    for j in range(m):
        left = remainders[:, :j] @ u[:j, j]
        carried = np.zeros(n)
        for i in range(n):
            wanted = ordered_target[i, j] - v[:i, i] @ carried[:i] - v[i, i] * left[i]
            scale = v[i, i] * u[j, j]
            near = round(wanted / step)
            choices = (near, near - (near > 0) + (near < 0), 0)
            level = min(choices, key=lambda k: ((wanted - k * step) / scale) ** 2 + toll * price(k))
            levels[i, j], remainders[i, j] = level, (wanted - level * step) / scale
            carried[i] = left[i] + remainders[i, j] * u[j, j]
    found = np.empty((n, m), np.int32)
    found[np.ix_(rows.order, columns.order)] = levels
    return found


def _prices(levels: Array) -> Callable[[int], float]:
    """Bits of a level, as often as rounding plainly needs it."""
    counts = np.bincount(np.minimum(np.abs(levels), 63).astype(int).ravel(), minlength=64) + 0.3
    bits = -np.log2(counts / counts.sum()) + (np.arange(64) > 0)
    return lambda level: float(bits[min(63, abs(int(level)))])


@contextlib.contextmanager
def _rounding(function: Callable[..., Array]) -> Iterator[None]:
    usual = subject.round_matrix
    subject.round_matrix = function
    try:
        yield
    finally:
        subject.round_matrix = usual


VARIANTS: dict[str, Sweep] = {
    "plain rounding, one step": plain,
    "plain rounding, levels 0.05 nearer zero": drawn(0.05),
    "plain rounding, biases and norms 4 times finer": finer(4),
    "error carried over columns only": changed(columns_only),
    "error carried over rows only": changed(rows_only),
    "as built, without tuning": built(),
    "as built": built(tuned=True),
    "one step for all matrices": changed(one_step),
    "damping 0.1 and 0.1": built(Damping(0.1, 0.1)),
    "damping 0.03 and 0.1": built(Damping(0.03, 0.1)),
    "damping 0.3 and 0.3": built(Damping(0.3, 0.3)),
    "damping 0.1 and 1": built(Damping(0.1, 1.0)),
    "most energy first": ordered(-1),
    "places in their order": ordered(0),
    "half of the batches": with_batches(2),
    "four times the batches": with_batches(16),
    "moments of the rounded network": from_rounded,
    "differences shrunk, 0.03": shrunk(0.03),
    "bits in the choice of a level, 0.25": rated(0.25),
    "bits in the choice of a level, 1": rated(1.0),
}


# ---- the sweep -------------------------------------------------------------------------------------------------


def at_divergence(points: list[tuple[float, float]], kl: float) -> float | None:
    """Bits where the divergence is `kl`; None outside the sweep."""
    known = sorted(points, key=lambda point: point[1])
    for (bits, low), (fewer, high) in itertools.pairwise(known):
        if low <= kl <= high:
            share = math.log(kl / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(bits) + share * math.log(fewer))
    return None


def swept(case: Case, run: Sweep, first: float) -> list[tuple[float, float]]:
    """Steps a factor 1.5 apart until both sides of the divergence are known."""
    points: dict[int, tuple[float, float]] = {}
    at = 0
    while len(points) < 9:
        points[at] = run(case, first * 1.5**at)
        above, below = any(k > _KL for _, k in points.values()), any(k <= _KL for _, k in points.values())
        if above and below:
            break
        at = max(points) + 1 if below else min(points) - 1
    return list(points.values())


def earlier_versions(folders: list[Path]) -> dict[str, dict[str, float]]:
    """How the last update of each trace hangs together with the one before it: what prediction from two versions could
    save, per value and at a high rate."""
    found = {}
    for place in folders:
        files = sorted(place.glob("*.safetensors"))
        if len(files) < 3:
            continue
        one, two, three = (load_file(file) for file in files[-3:])
        names = [n for n, w in three.items() if w.dtype == np.float32 and w.ndim > 1]
        last = np.concatenate([(three[n].astype(np.float64) - two[n]).ravel() for n in names])
        before = np.concatenate([(two[n].astype(np.float64) - one[n]).ravel() for n in names])
        correlation = float(last @ before / math.sqrt((last @ last) * (before @ before)))
        found[f"{place.parent.name}/{place.name}"] = {
            "correlation": correlation,
            "bits": -0.5 * math.log2(1 - correlation**2),
        }
    return found


def _case(where: Path, pair: str, share: float) -> Case:
    old, new = traces.pair(where, pair)
    name = traces.PAIRS[pair][0].split("/")[0]
    data = where.parent / "data"
    predictor = Predictor(calibrating.loaded(name, new), calibrating.batches_of(name, data))
    judge = evaluate.Evaluator(name, new, evaluate.held_out(name, data, share))
    return Case(old, new, predictor, gather(predictor), judge)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench tried", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pairs", nargs="+", default=_PAIRS)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--share", type=float, default=0.3, help="how much of the held-out data to use")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench tried needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    quick = trace_sets.traces_folder() / "quick"
    earlier = earlier_versions([where / "vgg-small", *(sorted(quick.iterdir()) if quick.is_dir() else [])])
    for pair in options.pairs:
        _KNOWN.clear()
        case = _case(where, pair, options.share)
        for variant in options.only:
            first = case.calibration().steps.for_divergence(_KL) or 1.0
            points = swept(case, VARIANTS[variant], first * (0.1 if variant.startswith("plain") else 1))
            bits = at_divergence(points, _KL)
            row = {"bits": bits, "points": [{"bits": b, "kl": k} for b, k in sorted(points)]}
            print(pair, variant, row, file=sys.stderr, flush=True)
            found = record.load("tried").get("pairs", {})
            found.setdefault(pair, {})[variant] = row
            document = {"kl": _KL, "share": options.share, "pairs": found, "earlier_versions": earlier}
            record.save("tried", document, ("nearzip", "numpy", "torch"))
