"""What becomes of an update: how much of the change against the base is still there in what a reader gets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

__all__ = ["MIN_SHARE", "NO_CHANGE", "Change", "Changes", "UpdateKept"]

#: A change of which less than this share is kept counts as lost.
MIN_SHARE = 0.01
#: The error of rounding to steps is spread evenly over half a step to either side: its rms is half the step over the
#: square root of three. A lost change of that size is what an earlier rounding left in the base, not an update: real
#: ones that get lost are smaller (a normal distribution: 0.36 of half a step at most).
_RESIDUE = 1 / math.sqrt(3)
_RESIDUE_BAND = 0.08
#: Tensors that a warning names.
_MAX_NAMED = 3


class Change(NamedTuple):
    """The change of one tensor, or of several, against the base: x is new, b the base's value, r the restored one.

    Parameters
    ----------
    n_changed : int
        Finite values x that differ from b.
    n_kept : int
        Those of them whose r differs from b.
    squares, error : float
        Sums of (x - b)^2 and (x - r)^2 over the finite values.

    Examples
    --------
    >>> one = Change(n_changed=4, n_kept=1, squares=10.0, error=1.0)
    >>> one.share, one.share_of_values
    (0.9, 0.25)
    """

    n_changed: int = 0
    n_kept: int = 0
    squares: float = 0.0
    error: float = 0.0

    @staticmethod
    def sum(changes: Iterable[Change]) -> Change:
        """The change of several tensors together."""
        rows = list(changes)
        return Change(*map(sum, zip(*rows, strict=True))) if rows else NO_CHANGE

    @property
    def share(self) -> float:
        """1 - error / squares, 0 to 1: the share of the change that is kept. 1 if nothing changed."""
        if not self.squares:
            return self.share_of_values
        return min(1.0, max(0.0, 1 - self.error / self.squares))

    @property
    def share_of_values(self) -> float:
        """The share of the changed values that are not restored as the base has them. 1 if nothing changed."""
        return self.n_kept / self.n_changed if self.n_changed else 1.0

    def is_residue(self, half_step: float) -> bool:
        """Whether all that differs from the base is what rounding to these steps left there: the tensor did not change
        since the base was made.
        """
        if self.error < (1 - MIN_SHARE) * self.squares or not self.n_changed or not half_step:
            return False
        return abs(math.sqrt(self.squares / self.n_changed) / (half_step * _RESIDUE) - 1) < _RESIDUE_BAND

    def exactly(self) -> Change:
        """The same change, stored without an error."""
        return Change(self.n_changed, self.n_changed, self.squares, 0.0)


NO_CHANGE = Change()


@dataclass(frozen=True)
class UpdateKept:
    """How much of an update a reader gets.

    Parameters
    ----------
    tensors : mapping of str to Change
        The floating-point tensors that have a base and may be rounded. All others are exact.
    judged_by_values : collection of str
        Tensors rounded in a way that may move values farther than the update did (calibration, a step without a bound):
        they count as lost only if their values stay at the base's as well.
    tolerated : collection of str
        Tensors whose loss the bound allows by design, `upd:E` over the whole network: only its total is checked.
    residues : mapping of str to Change
        Tensors left out of `tensors`: they differ from the base by no more than what rounding left in it, so that they
        seem not to have changed since it was made.

    Examples
    --------
    >>> kept = UpdateKept({"w": Change(100, 0, 1.0, 1.0), "b": Change(10, 10, 1.0, 0.1)})
    >>> kept.lost, round(kept.network.share, 3)
    (('w',), 0.45)
    """

    tensors: Mapping[str, Change] = field(default_factory=dict)
    judged_by_values: Collection[str] = frozenset()
    tolerated: Collection[str] = frozenset()
    residues: Mapping[str, Change] = field(default_factory=dict)
    #: The change over all of `tensors`.
    network: Change = field(init=False, repr=False, compare=False)
    #: Tensors that changed and whose change is lost, the largest change first.
    lost: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [name for name, one in self.tensors.items() if self._is_lost(one, name in self.judged_by_values)]
        names.sort(key=lambda name: -self.tensors[name].squares)
        self.__dict__.update(network=Change.sum(self.tensors.values()), lost=tuple(names))

    @property
    def share(self) -> float:
        """The share of the network's change that is kept, 0 to 1."""
        return self.network.share

    @property
    def network_lost(self) -> bool:
        """Whether the change of the network as a whole is lost."""
        return self._is_lost(self.network, bool(self.judged_by_values))

    @staticmethod
    def _is_lost(change: Change, by_values: bool) -> bool:
        if change.error < (1 - MIN_SHARE) * change.squares:
            return False
        lost = change.n_changed > 0 and change.share < MIN_SHARE
        return lost and (not by_values or change.share_of_values < MIN_SHARE)

    def warning(self) -> str | None:
        """What to tell the user; None if nothing of note is lost."""
        lost = [name for name in self.lost if name not in self.tolerated]
        if not lost and not self.network_lost:
            return None
        named = list(lost or self.lost)
        names = ", ".join(repr(name) for name in named[:_MAX_NAMED]) + (", .." if len(named) > _MAX_NAMED else "")
        where = f"in {len(named)} of {len(self.tensors)} tensors ({names})" if named else "over the whole network"
        return (
            f"the update is lost: {where} less than {MIN_SHARE:.0%} of the change is kept and a "
            f"reader gets about what the base has; the network keeps {self.share:.1%}. A bound made from the update "
            f"keeps it: upd:0.1 (nearzip.Update(0.1))"
        )

    def knowing(self, is_changed: Mapping[str, bool]) -> UpdateKept:
        """The same, where it is known of some tensors whether they changed since the base was made."""
        found = {name: one for name, one in self.tensors.items() if is_changed.get(name, True)}
        found |= {name: one for name, one in self.residues.items() if is_changed.get(name, False)}
        left = {name: one for name, one in self.residues.items() if name not in is_changed}
        return replace(self, tensors=found, residues=left)

    def to_json(self) -> dict[str, Any]:
        """The JSON that the command line prints."""
        network = self.network
        return {
            "share": network.share,
            "share_of_values": network.share_of_values,
            "lost": list(self.lost),
            "tensors": {
                name: {"share": one.share, "share_of_values": one.share_of_values} for name, one in self.tensors.items()
            },
        }


@dataclass
class Changes:
    """The change of each tensor, summed up block by block."""

    by_name: dict[str, Change] = field(default_factory=dict)
    half_steps: dict[str, float] = field(default_factory=dict)

    def add(self, names: Iterable[str], changes: Iterable[Change | None], step: float) -> None:
        """Those of one block's parts (none: nothing was measured), rounded to multiples of `step`; 0 if it has none."""
        by_name, half_steps, half = self.by_name, self.half_steps, step / 2
        for name, change in zip(names, changes, strict=False):
            if change is None:
                continue
            known = by_name.get(name)
            if known is None:
                by_name[name], half_steps[name] = change, half
            else:
                by_name[name] = Change.sum((known, change))
                half_steps[name] = max(half, half_steps[name])

    def found(self, aliases: Mapping[str, str]) -> tuple[dict[str, Change], dict[str, Change]]:
        """By tensor, aliases included; and apart from them those that are no more than rounding errors of the base."""
        moved = {name: one for name, one in self.by_name.items() if not one.is_residue(self.half_steps[name])}
        residues = {name: one for name, one in self.by_name.items() if name not in moved}
        for found in (moved, residues):
            found.update({alias: found[name] for alias, name in aliases.items() if name in found})
        return moved, residues
