"""Further than one bound for all: tensors that bear more get coarser bounds, those that bear less finer ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nearzip.api import compress
from nearzip.bounds import Bound
from nearzip.budget.families import KINDS, Bounds
from nearzip.budget.plan import Assignment, Trial
from nearzip.budget.trials import Runner
from nearzip.tensors import is_float

__all__ = ["refine"]

#: Tensors that are turned one by one; all others are turned together.
_GROUPS = 8
#: What a bound is multiplied by at first, and divided by; each success squares it, up to a factor of four.
_FACTOR, _MOST = 2**0.5, 4.0
#: A change that saves a smaller share of the archive is not worth a trial.
_WORTH = 0.002

Group = tuple[str, ...]


@dataclass(frozen=True)
class _Move:
    """Groups to make coarser and finer, and the bytes that the archive then takes."""

    coarser: Group
    finer: Group
    assignment: Assignment
    n_bytes: int


def refine(runner: Runner, family: Bounds, evaluations: int) -> None:
    """Change the best trial tensor by tensor, up to `evaluations` trials in all, as long as that saves bytes.

    Each group of tensors is made coarser alone, that which saves most first, and stays so if the network is then within
    the budget. What a group's change cost tells which groups to exchange afterwards: one coarser, another finer.
    """
    groups = _groups(runner)
    costs: dict[Group, float] = {}
    factors = dict.fromkeys(groups, _FACTOR)
    while len(runner.trials) < evaluations:
        best = runner.best
        if best is None:
            return
        move = next(_moves(runner, family, best, factors, costs), None)
        if move is None:
            return
        [trial] = runner.run([move.assignment], "refine")
        saved = 1 - trial.n_bytes / best.n_bytes
        if trial is runner.best:
            factors[move.coarser] = min(_MOST, factors[move.coarser] ** 2)
        elif factors[move.coarser] > _FACTOR:
            factors[move.coarser] = _FACTOR
        elif move.finer:
            del factors[move.coarser]
        else:
            costs[move.coarser] = (trial.usage - best.usage) / max(saved, 1e-9)


def _groups(runner: Runner) -> list[Group]:
    """The largest tensors one by one, and all others that have two dimensions or more together."""
    tensors = runner.subject.tensors
    names = sorted(
        (n for n, a in tensors.items() if a.ndim > 1 and is_float(a.dtype)), key=lambda n: -tensors[n].nbytes
    )
    rest = tuple(names[_GROUPS:])
    return [*((name,) for name in names[:_GROUPS]), *([rest] if rest else [])]


def _moves(
    runner: Runner, family: Bounds, best: Trial, factors: Mapping[Group, float], costs: Mapping[Group, float]
) -> Iterator[_Move]:
    """What to try next, the most promising first: groups not probed yet alone, then exchanges of cheap for dear."""
    probes = [_move(runner, family, best, group, (), factor) for group, factor in factors.items() if group not in costs]
    yield from _worthwhile(probes, best)
    by_cost = sorted((group for group in factors if group in costs), key=lambda group: costs[group])
    exchanges = (
        _move(runner, family, best, cheap, dear, factors[cheap])
        for i, cheap in enumerate(by_cost)
        for dear in reversed(by_cost[i + 1 :])
        if costs[cheap] < costs[dear]
    )
    for exchange in exchanges:
        yield from _worthwhile([exchange], best)


def _worthwhile(moves: Sequence[_Move], best: Trial) -> list[_Move]:
    kept = [move for move in moves if move.n_bytes < (1 - _WORTH) * best.n_bytes]
    return sorted(kept, key=lambda move: move.n_bytes)


def _move(runner: Runner, family: Bounds, best: Trial, coarser: Group, finer: Group, factor: float) -> _Move:
    changed = dict.fromkeys(coarser, factor) | dict.fromkeys(finer, 1 / _FACTOR)
    by_name = dict(best.assignment.by_name)
    for name, by in changed.items():
        choice = best.assignment[name]
        by_name[name] = choice.with_bound(_scaled(choice.bound, by, family.kind))
    assignment = Assignment(best.assignment.default, by_name)
    subject = runner.subject
    return _Move(coarser, finer, assignment, compress(subject.tensors, subject.base, plan=assignment).nbytes)


def _scaled(bound: Bound | None, factor: float, kind: str) -> Bound:
    value = getattr(bound, "value", None)
    assert isinstance(value, float), "what a search over bounds found has one"
    return KINDS[kind](float(f"{value * factor:.3g}"))
