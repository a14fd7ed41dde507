"""Lattice quantization of updates, offline: what A2, D4 and E8 would save beside rounding each value alone.

Groups of neighbouring values of the difference to the base go to the nearest point of a lattice (Conway and Sloane,
"Fast quantizing and decoding algorithms for lattice quantizers and codes", 1982). Bits are ideal: the entropy of the
coordinates one by one, each in context of what is known by then - the coset, the parity so far, which settles the last
coordinate's - and of how far the group's rows and columns move, in the same classes for every lattice; half a logarithm
of the number of values for each free parameter of a table, nothing for the classes. Tensors of one dimension are
rounded value by value. Beside that, what the package's own coder takes for E8 (`nearzip.stages.E8Step`).
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from experiments.claims.bits import fidelity
from experiments.claims.bits.rates import changed
from experiments.lab import pairs, record, traces
from experiments.lab.curves import Point, against
from experiments.lab.traces import Tensors
from nearzip.stages import Context, E8Step, Grid, Pipeline, Rans, Stage, SubtractBase, UniformStep, e8
from nearzip.tensors import Array

#: Values that share a class, whatever the lattice.
_GROUP = 8
#: Classes an octave.
_PER_OCTAVE = 2
#: Bits of plain rounding between which steps are swept.
_MOST, _LEAST = 3.4, 0.2
_KINDS = ("plain", "unbiased")
#: Values of a tensor that goes to points in the package.
_LARGE = 1 << 12


def nearest_even(x: Array) -> Array:
    """The nearest integers whose sum is even, each row of `x`, shape (n, m): where it is odd, the coordinate that was
    rounded farthest goes to its other side."""
    points = np.rint(x)
    error = x - points
    odd = np.flatnonzero(points.sum(axis=1) % 2)
    worst = np.abs(error[odd]).argmax(axis=1)
    points[odd, worst] += np.where(error[odd, worst] < 0, -1, 1)
    return points


def _nearer(x: Array, one: Array, other: Array) -> tuple[Array, Array]:
    """Whichever point is nearer to each row, and which it is."""
    second = ((x - other) ** 2).sum(axis=1) < ((x - one) ** 2).sum(axis=1)
    return np.where(second[:, None], other, one), second.astype(np.int64)


@dataclass(frozen=True)
class Lattice:
    """Z, A2, D4 or E8.

    Parameters
    ----------
    name : str
    m : int
        Its dimension.
    volume : float
        Of the cell around a point.
    """

    name: str
    m: int
    volume: float

    @property
    def unit(self) -> float:
        """What coordinates are multiplied by for a cell of volume 1."""
        return self.volume ** (-1 / self.m)

    def nearest(self, x: Array) -> tuple[Array, Array, Array]:
        """For rows of `x`, shape (n, m): points, shape (n, m); the integers that are coded, too; cosets, shape (n,)."""
        if self.name == "A2":
            scale = np.array([1.0, math.sqrt(3)])
            half = scale / 2
            points, coset = _nearer(x, np.rint(x / scale) * scale, np.rint((x - half) / scale) * scale + half)
            return points, np.floor(points / scale + 1e-6), coset
        if self.name == "D4":
            points = nearest_even(x)
            return points, points, np.zeros(len(x), np.int64)
        if self.name == "E8":
            points, coset = _nearer(x, nearest_even(x), nearest_even(x - 0.5) + 0.5)
            return points, np.floor(points), coset
        points = np.rint(x)
        return points, points, np.zeros(len(x), np.int64)

    @property
    def even(self) -> bool:
        return self.name in ("D4", "E8")


LATTICES = (Lattice("Z", 1, 1.0), Lattice("A2", 2, math.sqrt(3) / 2), Lattice("D4", 4, 2.0), Lattice("E8", 8, 1.0))
# The points of A2 above are a step apart.


def conditional_bits(symbols: Array, contexts: Array) -> float:
    """Ideal bits of integers under one table for each context, tables counted."""
    symbols = (symbols - symbols.min()).astype(np.int64)
    wide = int(symbols.max()) + 1
    counts = np.bincount(contexts * wide + symbols, minlength=(int(contexts.max()) + 1) * wide).reshape(-1, wide)
    totals = counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        coded = np.where(counts > 0, -counts * np.log2(counts / totals), 0.0).sum()
        tables = ((counts > 0).sum(axis=1) - 1) / 2 * np.log2(np.maximum(totals[:, 0], 1))
    return float(coded + tables[totals[:, 0] > 0].sum())


def bits_of_points(lattice: Lattice, integers: Array, coset: Array, classes: Array) -> float:
    """Of points that `nearest` found; `classes`, shape (n,), known to both sides."""
    last = np.zeros(integers.shape, np.int64)
    last[:, -1] = 1
    before = np.cumsum(integers, axis=1) - integers
    parity = (before % 2).astype(np.int64) if lattice.even else np.zeros(integers.shape, np.int64)
    context = ((classes * 2 + coset)[:, None] * 2 + parity) * 2 + last
    bits = conditional_bits(integers.reshape(-1), context.reshape(-1))
    return bits + (conditional_bits(coset, classes) if coset.any() else 0.0)


def classes_of(difference: Array) -> Array:
    """How far each group of neighbours moves, by its rows and columns: integers, shape (ceil(n / 8),)."""
    cells = difference.reshape(difference.shape[0], difference.shape[1], -1)
    energy = (cells**2).mean(axis=2) + 1e-30
    scale = np.sqrt(energy.mean(axis=1, keepdims=True) * energy.mean(axis=0, keepdims=True) / energy.mean())
    each = np.broadcast_to(np.log2(scale)[:, :, None], cells.shape).reshape(-1)
    grouped = np.append(each, np.full(-each.size % _GROUP, each[-1])).reshape(-1, _GROUP).mean(axis=1)
    return np.rint(_PER_OCTAVE * grouped).astype(np.int64)


@dataclass(frozen=True)
class Update:
    """A pair's difference: matrices as groups of eight values (padded with zeros), in one array, and the rest."""

    pair: pairs.Pair
    groups: Array
    classes: Array
    rest: Array

    @staticmethod
    def of(pair: pairs.Pair) -> Update:
        floats = {name: w for name, w in pair.new.items() if w.dtype.kind == "f"}
        moved = {name: w.astype(np.float64) - pair.old[name] for name, w in floats.items()}
        matrices = [d for d in moved.values() if d.ndim > 1]
        groups = [np.append(d.reshape(-1), np.zeros(-d.size % _GROUP)).reshape(-1, _GROUP) for d in matrices]
        classes = np.concatenate([classes_of(d) for d in matrices])
        rest = np.concatenate([d.reshape(-1) for d in moved.values() if d.ndim < 2])
        return Update(pair, np.concatenate(groups), classes - classes.min(), rest)

    def rounded(self, lattice: Lattice, step: float, unbiased: bool) -> tuple[float, Tensors]:
        """Bits in all, and the restored network. `unbiased`: points moved so that the update keeps its length."""
        scale = step * lattice.unit
        points, integers, coset = lattice.nearest(self.groups.reshape(-1, lattice.m) / scale)
        classes = np.repeat(self.classes, _GROUP // lattice.m)
        rest = np.rint(self.rest / step)
        bits = bits_of_points(lattice, integers, coset, classes)
        bits += conditional_bits(rest, np.zeros(rest.size, np.int64))
        found = (points * scale).reshape(-1, _GROUP)
        if unbiased:
            found *= (self.groups**2).sum() / max(float((self.groups * found).sum()), 1e-300)
        return bits, self._restored(found, rest * step)

    def _restored(self, groups: Array, rest: Array) -> Tensors:
        restored, at, at_rest = dict(self.pair.new), 0, 0
        for name, w in self.pair.new.items():
            if w.dtype.kind != "f":
                continue
            if w.ndim > 1:
                stop = at + -(-w.size // _GROUP)
                moved, at = groups[at:stop].reshape(-1)[: w.size], stop
            else:
                moved, at_rest = rest[at_rest : at_rest + w.size], at_rest + w.size
            restored[name] = (self.pair.old[name] + moved.reshape(w.shape)).astype(w.dtype)
        return restored


def error(new: Tensors, restored: Tensors) -> float:
    """Sum of squares over matrices."""
    return float(sum(((new[n].astype(np.float64) - w) ** 2).sum() for n, w in restored.items() if w.ndim > 1))


def sweep(update: Update, lattice: Lattice, judge: fidelity.Judge | None, unbiased: bool) -> list[Point]:
    """Thirds of an octave, through all rates of plain rounding; without a judge only errors."""
    n = sum(w.size for w in update.pair.new.values())
    points = []
    for at in range(-12, 16):
        step = 2 * update.pair.unit * 2 ** (at / 3)
        plain = update.rounded(LATTICES[0], step, False)[0] / n
        if not _LEAST <= plain <= _MOST:
            continue
        bits, restored = update.rounded(lattice, step, unbiased)
        judged = {"kl": judge(restored)["kl"]} if judge else {}
        points.append({"step": step, "bits": bits / n, "error": error(update.pair.new, restored), **judged})
    return points


#: Ways to code points: constants of `nearzip.stages.e8` that make it the only one.
_WAYS: dict[str, dict[str, float]] = {
    "as built": {},
    "in place": {"_FEW_SMALL": 2.0},
    "zeros apart": {"_FEW_SMALL": -1.0, "_FEW_LARGE": -1.0},
    "shortest as numbers": {"_FEW_SMALL": -1.0, "_FEW_LARGE": 2.0},
}


def coded(pair: pairs.Pair, step: float) -> dict[str, float]:
    """Bits of large tensors as the package codes them: rounding, and points of E8 in each of the ways it has."""
    large = [name for name, w in pair.new.items() if w.dtype.kind == "f" and w.size >= _LARGE]
    n = sum(pair.new[name].size for name in large)

    def bits(*stages: Stage) -> float:
        pipeline = Pipeline((SubtractBase(), *stages))
        return 8 * sum(_n_bytes(pipeline, pair.new[name], pair.old[name]) for name in large) / n

    found = {"step": step, "plain": bits(UniformStep(step), Rans())}
    for name, constants in _WAYS.items():
        with changed(e8, constants):
            found[name] = bits(E8Step(step))
    return found


def _n_bytes(pipeline: Pipeline, new: Array, old: Array) -> int:
    context = Context(new.dtype, (new.size,), old.reshape(-1), (Grid.of(new.shape),))
    return len(pipeline.encode(new.reshape(-1), context))


def _save(share: float, **changed: Any) -> None:
    before = {key: record.load("lattices").get(key, {}) for key in ("pairs", "coded")}
    record.save("lattices", {"share": share, **before, **changed}, ("nearzip", "numpy", "torch"))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench lattices", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pairs", nargs="+", choices=pairs.NAMES, default=[p for p in pairs.NAMES if "quick" not in p])
    parser.add_argument("--share", type=float, default=0.2, help="how much of the held-out data to use")
    parser.add_argument(
        "--kinds", nargs="+", choices=_KINDS, default=_KINDS, help="unbiased: updates keep their length"
    )
    parser.add_argument("--coded", action="store_true", help="only what the package's coder takes")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench lattices needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    for name in options.pairs:
        pair = pairs.load(name, where)
        known = record.load("lattices").get("coded", {})
        known[name] = [coded(pair, 2 * pair.unit * 2 ** (at / 2)) for at in range(-3, 3)]
        _save(options.share, coded=known)
        if options.coded:
            continue
        update, judge = Update.of(pair), fidelity.Judge(pair, where.parent / "data", options.share, fresh=False)
        for kind in options.kinds:
            unbiased = kind == "unbiased"
            swept = {e.name: sweep(update, e, None if e.name == "A2" else judge, unbiased) for e in LATTICES}
            print(
                name, kind, {e: against(swept["Z"], points) for e, points in swept.items()}, file=sys.stderr, flush=True
            )
            found = record.load("lattices").get("pairs", {})
            found.setdefault(name, {})[kind] = swept
            _save(options.share, pairs=found)
