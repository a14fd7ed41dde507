"""Thinner layers: neurons and filters are removed with everything that depends on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.condense.groups import (
    TOLERANCE,
    Group,
    find_groups,
    masked,
    outputs_of,
    relative_difference,
    thinned,
)
from nearzip.condense.schemes import Prepared, Scheme, Values
from nearzip.errors import Error, UsageError
from nearzip.network.fitting import fit

__all__ = ["Structure"]


@dataclass(frozen=True)
class Structure(Scheme):
    """Remove neurons and filters, by groups of channels that can only go together.

    A channel goes with its filter or row, its bias, its batch norm, and what reads it in the layers behind; where
    channels meet in an addition, all that meet go. The network's outputs stay. A channel's score is the mean square of
    the values that make it, relative to the mean of its group; `keep` is the share of all channels that is kept, in the
    order of the scores. Widths never grow as `keep` falls.

    Parameters
    ----------
    align : int
        Widths are rounded up to multiples of it: kernels take as long for 61 channels as for 64.
    floor : int
        The least width of a group.
    """

    align: int = 8
    floor: int = 1

    def __post_init__(self) -> None:
        for name, value in (("align", self.align), ("floor", self.floor)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} is a whole number from 1 on, not {value!r}")

    def prepare(self, module: nn.Module, inputs: Any = None, size: int | None = None) -> Prepared:
        groups, notes = find_groups(module, inputs)
        if not groups:
            raise UsageError(f"no layer of the network can be thinned: {'; '.join(notes)[:400] or 'it has none'}")
        return _Structured(self, groups, tuple(notes), module, inputs, size)


class _Structured(Prepared):
    prunes = True

    def __init__(
        self,
        scheme: Structure,
        groups: Sequence[Group],
        notes: tuple[str, ...],
        module: nn.Module,
        inputs: Any,
        size: int | None,
    ):
        self._scheme, self._groups, self._notes, self._inputs = scheme, groups, notes, inputs
        parameters = {name for name, _ in module.named_parameters()}
        touched = dict.fromkeys(part.tensor for group in groups for part in group.parts)
        self.names = tuple(name for name in touched if name in parameters)
        self._buffers = {n: b.detach().clone() for n, b in module.named_buffers() if n in touched}
        self.size = sum(group.width for group in groups) if size is None else size
        self._order: tuple[Any, Any] = self._scored(dict(module.named_parameters()))

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def project(self, values: Mapping[str, Tensor], keep: float) -> Values:
        self._order = self._scored(values)
        zeroed = masked({**self._buffers, **values}, self._removed(keep))
        return {name: zeroed[name] if name in zeroed else values[name].detach().clone() for name in self.names}

    def thin(self, module: nn.Module, keep: float) -> nn.Module:
        """The thinned network, whose outputs are checked against those of the masked one. Raises Error, which names
        the group that differs."""
        removed = self._removed(keep)
        values = dict(module.state_dict())
        module.load_state_dict({**values, **masked(values, removed)})
        values = dict(module.state_dict())
        small = fit(copy.deepcopy(module), thinned(values, removed))
        difference = relative_difference(outputs_of(module, self._inputs), outputs_of(small, self._inputs))
        if not difference <= TOLERANCE:
            raise Error(
                f"thinning changed the outputs by {difference:.2g}, more than {TOLERANCE:g}, in the groups "
                f"{', '.join(group.name for group in removed)}; leave them out, or report this"
            )
        return small

    def key(self, keep: float) -> object:
        return tuple(self.widths(keep).values())

    def snap(self, keep: float) -> float:
        """The smallest share with the same widths."""
        n = max(1, round(keep * self.size))
        wanted = self.key(keep)
        low, high = 0, n
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.key(middle / self.size) == wanted else (middle, high)
        return high / self.size

    def widths(self, keep: float) -> dict[str, int]:
        """Channels that are kept, by group."""
        n_kept = max(0, min(round(keep * self.size), sum(group.width for group in self._groups)))
        counts = np.bincount(self._order[0][:n_kept], minlength=len(self._groups))
        return {g.name: self._width(g, int(n)) for g, n in zip(self._groups, counts, strict=True)}

    def _width(self, group: Group, n: int) -> int:
        align = self._scheme.align
        return min(group.width, align * math.ceil(max(n, self._scheme.floor) / align))

    def _removed(self, keep: float) -> dict[Group, Tensor]:
        numbers, channels = self._order
        removed = {}
        for i, (group, width) in enumerate(zip(self._groups, self.widths(keep).values(), strict=True)):
            own = channels[numbers == i]
            if width < group.width:
                removed[group] = torch.from_numpy(np.sort(own[width:]))
        return removed

    def _scored(self, values: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """Group and channel of every channel of the network, the most important first."""
        numbers, channels, scores = [], [], []
        for i, group in enumerate(self._groups):
            score = _scores(group, values)
            numbers.append(np.full(group.width, i))
            channels.append(np.arange(group.width))
            scores.append(score / max(float(score.mean()), 1e-30))
        flat = np.concatenate(scores)
        order = np.argsort(-flat, kind="stable")
        return np.concatenate(numbers)[order], np.concatenate(channels)[order]


def _scores(group: Group, values: Mapping[str, Tensor]) -> Any:
    """Mean square of the values that make each channel: filters, biases and batch norm. Shape (width,), float64."""
    sums, counts = torch.zeros(group.width, dtype=torch.float64), torch.zeros(group.width, dtype=torch.float64)
    for part in group.parts:
        if not part.makes or part.tensor not in values:
            continue
        value = values[part.tensor].detach().to("cpu", torch.float64).movedim(part.dim, 0)
        rows = value[part.indices].reshape(len(part.indices), -1)
        sums.index_add_(0, part.channels, rows.square().sum(1))
        counts.index_add_(0, part.channels, torch.full((len(part.indices),), float(rows.shape[1]), dtype=torch.float64))
    return (sums / counts.clamp(min=1)).numpy()
