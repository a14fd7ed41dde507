"""Rounds a network's tensors, given how sensitive its outputs are to each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzip.bounds import Bound, NoPromise, Statistics
from nearzip.caching import cached_property
from nearzip.calibrate.fit_biases import fit_biases
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.rounding import Factor, round_matrix, triangular
from nearzip.calibrate.sensitivity import Sensitivity
from nearzip.calibrate.settings import Damping
from nearzip.calibrate.steps import Cost, Steps
from nearzip.calibrate.uses import Piece
from nearzip.network.arrays import to_torch
from nearzip.parallel import ordered_map
from nearzip.recipes.rounding import half_spacing
from nearzip.tensors import Array, is_float, round_to

__all__ = ["Rounded", "Rounder", "floats_of"]

#: A value farther from its base, in steps, is not calibrated: float32 could not represent it.
_MAX_STEPS = 1 << 24
#: Share of the predictions of their batches that biases are fitted to, and at least how many.
_FITTED, _FEWEST_FITTED = 3 / 8, 256
#: Values that are computed with in double precision at once.
_AT_ONCE = 1 << 20
#: Levels beyond are counted as this one, where the price of a bit is asked for.
_LAST_COUNTED = 63


@dataclass(frozen=True)
class Rounded:
    """A rounded network: its tensors, their steps, and its divergence from the original.

    Parameters
    ----------
    tensors : dict of str to array
        In the tensors' own dtypes; those that are not rounded are not in it.
    steps : dict of str to float
    plain : dict of str to str
        Tensors that were rounded without calibration, and the reason.
    divergence : float
        On the batches held back, per prediction.
    """

    tensors: dict[str, Array]
    steps: dict[str, float]
    plain: dict[str, str]
    divergence: float


@dataclass(frozen=True)
class _Tensor:
    """One floating-point tensor of the module: values, base, and how far a value may move (inf: anywhere).

    What follows from values and base is computed when asked for, some values at a time: a network has many.
    """

    values: Array
    base: Array | None
    reach: float

    @staticmethod
    def of(values: Array, base: Array | None, bound: Bound) -> _Tensor:
        statistics = Statistics.of(values)
        tolerance = bound.tolerance(statistics)
        if tolerance.kind not in ("finite", "absolute"):
            reach = 0.0
        else:
            reach = math.inf if tolerance.kind == "finite" else tolerance.value
        if math.isfinite(reach):
            # A margin for the rounding to the tensor's own dtype; the codec patches values that still exceed the bound.
            reach -= min(reach / 2, half_spacing(values.dtype, statistics.largest))
        return _Tensor(values, base, reach)

    def _start(self, part: slice) -> Array | float:
        return 0.0 if self.base is None else self.base.reshape(-1)[part].astype(np.float64)

    def differences(self, wanted: Array | None = None) -> Iterator[tuple[slice, Array]]:
        """Values, or `wanted` ones in their place, minus the base, float64; slices of the flattened tensor."""
        flat = (self.values if wanted is None else wanted).reshape(-1)
        for part in _parts(flat.size):
            with np.errstate(invalid="ignore", over="ignore"):
                yield part, flat[part].astype(np.float64) - self._start(part)

    @cached_property
    def largest(self) -> float:
        """Largest difference; NaN if one is, infinite if one is."""
        return max((float(np.abs(each).max()) for _, each in self.differences()), default=0.0, key=_rank)

    @property
    def largest_finite(self) -> float:
        found = (np.abs(each[np.isfinite(each)]) for _, each in self.differences())
        return max((float(each.max()) for each in found if each.size), default=0.0)

    @property
    def difference(self) -> Array:
        """float32."""
        found = np.empty(self.values.shape, np.float32)
        for part, each in self.differences():
            found.reshape(-1)[part] = each
        return found

    def restored(self, levels: Array, step: float) -> Array:
        """The values that a decoder will have."""
        found, flat = np.empty(self.values.shape, self.values.dtype), levels.reshape(-1)
        for part in _parts(flat.size):
            found.reshape(-1)[part] = round_to(self.values.dtype, np.asarray(self._start(part) + flat[part] * step))
        return found

    def nearest(self, wanted: Array, step: float) -> Array:
        """Levels, int32."""
        found = np.empty(self.values.shape, np.int32)
        for part, difference in self.differences(wanted):
            with np.errstate(invalid="ignore", over="ignore"):
                ratio = difference / step
                found.reshape(-1)[part] = np.rint(np.where(np.abs(ratio) < 2.0**30, ratio, 0.0))
        return found


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + _AT_ONCE, n)) for start in range(0, n, _AT_ONCE)]


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


@dataclass
class Rounder:
    """Rounds a network whose sensitivity is known; `round` can be called for any number of steps.

    Parameters
    ----------
    predictor : Predictor
    sensitivity : Sensitivity
        Its moments are taken out: the memory is needed.
    tensors : dict of str to array
        Floating-point tensors of the network, by the names of its state; tied ones under their first name.
    base : mapping of str to array
        The tensors that the reader holds, where they have the same dtype and shape.
    bounds : mapping of str to Bound
        Of each tensor, kept against `tensors`; nothing is promised for those that it leaves out.
    """

    predictor: Predictor
    sensitivity: Sensitivity
    tensors: dict[str, Array]
    base: Mapping[str, Array]
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    damping: Damping = field(default_factory=Damping)
    threads: int = 1

    def __post_init__(self) -> None:
        self._states = {
            name: _Tensor.of(values, self.base.get(name), self.bounds.get(name, NoPromise()))
            for name, values in self.tensors.items()
        }
        self._plain = self._reasons()
        self._factors = self._factored()
        self._ways = self._of_biases()
        self.steps = Steps(self._costs())
        self._originals = dict(self.sensitivity.originals)
        wanted = [i for i in (*self.predictor.held, *self.predictor.fitted) if i not in self._originals]
        with torch.no_grad(), self.predictor.evaluating():
            self._originals |= {i: self.predictor.predictions(self.predictor.batches[i]) for i in wanted}

    def _reasons(self) -> dict[str, str]:
        seen = {piece.name for piece in self.sensitivity.pieces}
        reasons = {}
        for name, state in self._states.items():
            if not math.isfinite(state.largest):
                reasons[name] = "not finite"
            elif name not in seen and state.values.ndim > 1:
                reached = self.sensitivity.curvature.get(name, 0.0) > 0
                reasons[name] = "used in a way that is not known" if reached else "not used by the batches"
        return reasons

    def _factored(self) -> dict[Piece, tuple[list[Factor], list[Factor]]]:
        wanted = [p for p in self.sensitivity.pieces if p.name in self._states and p.name not in self._plain]

        # Other accelerators may not know double precision.
        device = self.predictor.device if self.predictor.device.type == "cuda" else torch.device("cpu")

        def work(piece: Piece) -> tuple[list[Factor], list[Factor]]:
            weighed = self.sensitivity.pieces.pop(piece)
            looked_up = weighed.rows.is_diagonal
            row_damping = self.damping.inputs if looked_up else self.damping.gradients
            column_damping = self.damping.gradients if looked_up else self.damping.inputs
            return triangular(weighed.rows, row_damping, device), triangular(weighed.columns, column_damping, device)

        return dict(zip(wanted, ordered_map(work, wanted, self.threads), strict=True))

    def _of_biases(self) -> dict[str, Factor]:
        """The factor of each bias and norm: of the gradients where it is added or multiplied."""
        found = {}
        for name, gram in self.sensitivity.norms.items():
            found[name] = triangular(gram, self.damping.gradients)[0]
        self.sensitivity.norms.clear()
        for name, piece in self.sensitivity.biases.items():
            rows = self._factors[piece][0] if piece in self._factors else []
            if len(rows) == 1:
                found[name] = rows[0]
        return found

    def _costs(self) -> dict[str, Cost]:
        carried: dict[str, list[tuple[float, int]]] = {}
        for piece, (rows, columns) in self._factors.items():
            log_cost = np.mean([r.log_cost + c.log_cost for r, c in zip(rows, columns, strict=True)])
            n = sum(r.order.size * c.order.size for r, c in zip(rows, columns, strict=True))
            carried.setdefault(piece.name, []).append((float(log_cost), n))
        costs = {}
        for name, values in self.tensors.items():
            if name in carried:
                n = sum(n for _, n in carried[name])
                costs[name] = Cost(sum(cost * n for cost, n in carried[name]) / n, n, True)
                continue
            curvature = self.sensitivity.curvature.get(name, 0.0)
            costs[name] = Cost(math.log(curvature) if curvature > 0 else None, values.size, False)
        return costs

    def round(self, step: float, fitted: bool = True) -> Rounded:
        """Round all tensors, for one step of the network."""
        names = list(self._states)
        steps = {name: self._step(name, step) for name in self._carried}

        def work(name: str) -> tuple[Array, Array]:
            levels = self._levels(name, steps[name])
            return self._states[name].restored(levels, steps[name]), _counts(levels)

        found = dict(zip(self._carried, ordered_map(work, self._carried, self.threads), strict=True))
        price = _price([counts for _, counts in found.values()])
        tensors = {}
        for name in names:
            if name not in found:
                steps[name] = self._step(name, step, price)
                found[name] = work(name)
            tensors[name] = found[name][0]
        plain = {
            **self._plain,
            **{name: "too far from its base for its step" for name in names if self._far(name, steps[name])},
        }
        restored = self._as_torch(tensors)
        rounded = Rounded(tensors, steps, plain, self._divergence(restored))
        return self.with_fitted_biases(rounded, restored) if fitted else rounded

    def plain_steps(self, step: float) -> dict[str, float]:
        """Every tensor's step, nearly as `round` chooses it: from the levels that are nearest to the values."""
        steps = {name: self._step(name, step) for name in self._carried}
        counts = [_counts(self._states[name].nearest(self._states[name].values, own)) for name, own in steps.items()]
        price = _price(counts)
        return {name: steps.get(name) or self._step(name, step, price) for name in self._states}

    @cached_property
    def largest_difference(self) -> float:
        """Largest finite difference of a value to its base."""
        return max((state.largest_finite for state in self._states.values()), default=0.0)

    @cached_property
    def _carried(self) -> list[str]:
        """Tensors whose error is carried on."""
        return [name for name in self._states if self.steps.costs[name].carried]

    @cached_property
    def _fitting(self) -> tuple[list[Any], list[Tensor]]:
        """Batches that biases are fitted to, or some rows of each, and the original predictions."""
        originals = [self._originals[i] for i in self.predictor.fitted]
        share = max(_FITTED, _FEWEST_FITTED / sum(len(each) for each in originals))
        batches = [self.predictor.batches[i] for i in self.predictor.fitted]
        found = [self.predictor.part(*each, min(1.0, share)) for each in zip(batches, originals, strict=True)]
        return [batch for batch, _ in found], [original for _, original in found]

    def _step(self, name: str, step: float, price: float = 1.0) -> float:
        own, reach = self.steps.of(name, step, price), self._states[name].reach
        return own if own <= reach * (2 - 1 / 512) or not reach else reach * (2 - 1 / 512)

    def _far(self, name: str, step: float) -> bool:
        state = self._states[name]
        if name in self._plain or not state.difference.size:
            return False
        return state.largest >= _MAX_STEPS * step

    def _levels(self, name: str, step: float) -> Array:
        state = self._states[name]
        levels = state.nearest(state.values, step)
        if name in self._plain or self._far(name, step):
            return levels
        whole, difference = torch.from_numpy(levels), torch.from_numpy(state.difference)
        for piece, (rows, columns) in self._factors.items():
            if piece.name == name:
                matrices = piece.matrices(difference).numpy()
                rounded = [
                    round_matrix(matrix, r, c, step, state.reach)
                    for matrix, r, c in zip(matrices, rows, columns, strict=True)
                ]
                piece.put(torch.from_numpy(np.stack(rounded)), whole)
        return whole.numpy()

    def _as_torch(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        # A network may write into its buffers.
        known = dict(self.predictor.module.named_parameters())
        return {name: to_torch(a, copy=name not in known).to(self.predictor.device) for name, a in arrays.items()}

    def _divergence(self, restored: Mapping[str, Tensor]) -> float:
        with self.predictor.evaluating():
            held = self.predictor.held
            batches = [self.predictor.batches[i] for i in held]
            return self.predictor.mean_divergence([self._originals[i] for i in held], batches, restored)

    def with_fitted_biases(self, rounded: Rounded, restored: Mapping[str, Tensor] | None = None) -> Rounded:
        """The same, where that helps with biases and norms fitted to the rounded weights, on their grids again.

        `restored`: the rounded tensors on the module's device, where they are there already.
        """
        known = dict(self.predictor.module.named_parameters())
        curvature = {
            name: self.sensitivity.curvature[name]
            for name, state in self._states.items()
            if state.values.ndim <= 1 and name in known and self.sensitivity.curvature.get(name, 0.0) > 0
            and name not in rounded.plain
        }  # fmt: skip
        if not curvature:
            return rounded
        restored = restored or self._as_torch(rounded.tensors)
        best = rounded

        def limited(name: str, values: Tensor) -> Tensor:
            state = self._states[name]
            original = torch.from_numpy(state.values.astype(np.float32)).to(values.device)
            # Rounding may add half a step.
            margin = max(0.0, state.reach - rounded.steps[name] / 2)
            return values if math.isinf(margin) else original + (values - original).clamp(-margin, margin)

        with self.predictor.evaluating():
            batches, originals = self._fitting
            ways = self._ways
            for values in fit_biases(self.predictor, originals, restored, curvature, limited, ways, batches):
                fitted = {}
                for name, wanted in values.items():
                    state, step = self._states[name], rounded.steps[name]
                    fitted[name] = state.restored(state.nearest(wanted.cpu().numpy(), step), step)
                divergence = self._divergence({**restored, **self._as_torch(fitted)})
                if divergence >= best.divergence:
                    break
                best = replace(rounded, tensors={**rounded.tensors, **fitted}, divergence=divergence)
        return best


def _counts(levels: Array) -> Array:
    """How many levels are 0, 1, .. away from zero."""
    flat, found = levels.reshape(-1), np.zeros(_LAST_COUNTED + 1, np.int64)
    for part in _parts(flat.size):
        found += np.bincount(np.minimum(np.abs(flat[part]), _LAST_COUNTED), minlength=found.size)
    return found


def _price(counts: list[Array]) -> float:
    """Bits that half the step would cost for each value: about the entropy where that is small, at most one."""
    if not counts:
        return 1.0
    total = np.sum(counts, axis=0)
    shares = total[total > 0] / total.sum()
    return float(min(1.0, max(1 / 256, -(shares * np.log2(shares)).sum())))


def floats_of(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors that may be rounded: floating-point ones that are not empty."""
    return {name: array for name, array in tensors.items() if is_float(array.dtype) and array.size}
