"""`Saver`: training checkpoints, snapshotted synchronously, then compressed and committed by a background thread."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn, optim

from nearzip.bounds import Bound, Lossless
from nearzip.coding import Codings
from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError
from nearzip.moments import Moments
from nearzip.store.keep import parse_rules
from nearzip.tensors import Array
from nearzip.torch.background import Background
from nearzip.torch.places import StoreLike, commit_quietly, open_store, prune_store
from nearzip.torch.plans import BoundOrBounds, StatePlan
from nearzip.torch.ranks import is_first_process
from nearzip.torch.renames import Rename, checked, renamed_tensors
from nearzip.torch.restoring import Restored, restore
from nearzip.torch.shapes import Shapes
from nearzip.torch.snapshot import Snapshot
from nearzip.torch.state import TrainingState, capture, random_state
from nearzip.torch.wrappers import check_whole

__all__ = ["SaveReport", "Saver"]


@dataclass
class SaveReport:
    """What saving has cost so far. Times in seconds, on the training's own thread unless said otherwise.

    Parameters
    ----------
    n_saves : int
    seconds_copying : float
        Capturing and copying the state.
    seconds_waiting : float
        For the save before to end.
    seconds_behind : float
        On the background thread: compressing, checking, writing.
    n_bytes : int
        That the versions took in the store.
    snapshot_bytes : int
        Memory of the copy. The store also holds the latest version, and the background thread the new one while it is
        made (docs/training.md, "Memory").
    last_version : int or None
        The newest version that is committed.
    update_kept : float or None
        The share of its weights' change since the version before that is kept, 0 to 1; None if it has no base. Nearly
        none is logged as a warning, once.
    """

    n_saves: int = 0
    seconds_copying: float = 0.0
    seconds_waiting: float = 0.0
    seconds_behind: float = 0.0
    n_bytes: int = 0
    snapshot_bytes: int = 0
    last_version: int | None = None
    update_kept: float | None = None


class Saver:
    """Saves a training into a store and puts it back.

    Parameters
    ----------
    store : Store, str or path
        An open store, or where one is or shall be made.
    bound : Bound or str
        For the weights, against those of the training: matrices and filters have it, norms and biases an eighth of
        it, buffers are exact. None: the store's bound (bounds by pattern as they are written there), every bit if it
        has none.
    every : int
        `save` does nothing unless the step is a multiple of it.
    keep : str
        What `Store.prune` shall keep after each save, such as "last:5 every:1000 best:accuracy"; None: everything.
    policy : str
        How this saver chains versions; None: as the store does. A store that is made has it as its own.
    method, options : str, dict
        For the weights; None: the store's.
    moments : Moments, "auto" or None
        For the optimizer. None: exact. "auto": `Moments()` if there is a bound other than lossless, else exact.
    threads : int
        For compressing; one leaves the processors to the training.
    writes : bool or None
        Whether this process saves. None: if it is the first of its training, by `torch.distributed` or by what
        launchers such as torchrun put into the environment; in the others `save` does nothing and returns False.
    rename : mapping of str to str
        For a model whose tensors are called otherwise in the store's versions so far: their names there, or what these
        begin with, and what the model has in their place (``{"encoder.": "backbone."}``). Restoring finds them, and
        the first save is coded against them.

    Notes
    -----
    `save` copies the state and returns; one save is under way at a time, and the next one waits for it. What fails in
    the background is raised at the next call of any method, at the latest by `close`. Committed versions stay.
    """

    def __init__(
        self,
        store: StoreLike,
        *,
        bound: Bound | str | None = None,
        every: int = 1,
        keep: str | None = None,
        policy: str | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        moments: Moments | str | None = "auto",
        threads: int | None = 1,
        writes: bool | None = None,
        rename: Rename | None = None,
    ):
        if isinstance(every, bool) or int(every) != every or every < 1:
            raise UsageError(f"every is a whole number of steps from 1 on, not {every!r}")
        if isinstance(moments, str) and moments != "auto":
            raise UsageError(f"moments are nearzip.torch.Moments(..), 'auto' or None, not {moments!r}")
        self._wanted_writes = writes
        self._rename = self._rename_next = checked(rename)
        self.store = open_store(store, policy, threads=threads)
        if keep is not None:
            parse_rules(keep)  # refused now, not later by the background thread
        self.every = int(every)
        self._counts = SaveReport()
        self._keep = keep
        settings = self.store.settings
        if method is None:
            method, options = settings.method, settings.options if options is None else options
        # What the method cannot promise is refused now, not in the background.
        self._parameters = (method, settings.bound if bound is None else bound, options)
        self._plan = StatePlan.of(TrainingState({}, {}), self._parameters[1], method, options)
        self._moments = (Moments() if _is_lossy(self._plan.codings) else None) if isinstance(moments, str) else moments
        self._snapshot = Snapshot()
        self._predictions: dict[str, tuple[Array, Array]] = {}
        self._shapes = Shapes(self.store, self._rename)
        self._background = Background("save")
        self._closed = False

    @property
    def codes_parameters(self) -> tuple[str, BoundOrBounds | None, Mapping[str, Any] | None]:
        """Method, bound and options for the weights."""
        return self._parameters

    @property
    def writes(self) -> bool:
        """Whether `save` saves in this process."""
        return is_first_process() if self._wanted_writes is None else self._wanted_writes

    # saving

    def save(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
        scheduler: Any = None,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        *,
        scaler: Any = None,
        loader: Any = None,
        extra: Any = None,
        message: str = "",
        tags: Sequence[str] = (),
        force: bool = False,
    ) -> bool:
        """Copy the state now; compress and commit it in the background. Returns whether this process saves this step.

        `force`: save whatever the step. The other parameters are `capture`'s and `Store.commit`'s.

        Raises
        ------
        UsageError
            State that cannot be stored, a model whose tensors changed shape since the last save, a closed saver.
        Error, OSError
            What failed in the save before: it is raised once, and this save is not made.
        """
        if self._closed:
            raise UsageError("this saver is closed; make a new one")
        if step % self.every and not force:
            return False
        if not self.writes:
            check_whole(model)  # the first process refuses it as well; none waits for the other
            return False
        self.wait()
        begin = time.perf_counter()
        live = capture(model, optimizer, scheduler, step, metrics, scaler=scaler, loader=loader, extra=extra, rng=False)
        self._shapes.check(live, model)
        state, generators = self._snapshot.copy(live), random_state()
        said = {"metrics": _numbers(metrics), "message": message, "tags": list(tags), "step": state.step}
        self._counts.seconds_copying += time.perf_counter() - begin
        self._counts.snapshot_bytes = self._snapshot.n_bytes
        self._counts.n_saves += 1
        self._background.start(lambda: self._behind(state.with_random(generators), said))
        return True

    def _behind(self, state: TrainingState, said: Mapping[str, Any]) -> None:
        small = state.shrunk(self._moments, self._predictions)
        plan = dataclasses.replace(self._plan, state=small)
        arrays = small.to_arrays()
        version = commit_quietly(self.store, arrays, plan=plan, rename=self._renames(arrays), **said)
        self._rename_next = None  # from now on the newest version has the model's names
        self._counts.last_version = version
        kept = self.store.update_kept
        self._counts.update_kept = None if kept is None else kept.share
        self._counts.n_bytes += self.store.info(version).n_stored
        prune_store(self.store, self._keep)

    def _renames(self, arrays: Mapping[str, Array]) -> dict[str, str] | None:
        """What tensors of the newest version are called now."""
        if self._rename_next is None:
            return None
        try:
            return renamed_tensors(self.store.specs(), arrays, self._rename_next)
        except (NotFoundError, CorruptError, LimitError):  # there is none to be coded against
            return None

    @property
    def report(self) -> SaveReport:
        """What saving has cost so far."""
        waiting, behind = self._background.seconds_waiting, self._background.seconds_behind
        return dataclasses.replace(self._counts, seconds_waiting=waiting, seconds_behind=behind)

    def wait(self) -> None:
        """Wait until the current save is committed. Raises the background thread's error."""
        self._background.wait()

    def close(self) -> None:
        """Wait for the last save. Raises the background thread's error."""
        self._closed = True
        self.wait()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The user has to see the exception that ended the block; a background error is added as a warning.
        try:
            self.close()
        except BaseException as behind:  # told, not raised over the first
            warnings.warn(f"the last save failed as well: {behind}", RuntimeWarning, stacklevel=2)

    # restoring

    def restore(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
        scheduler: Any = None,
        *,
        scaler: Any = None,
        loader: Any = None,
        version: int | str = "latest",
        rng: bool = True,
        strict: bool = True,
    ) -> Restored | None:
        """Put a version back, the newest if none is named; None if nothing was saved yet.

        The parameters and the result are those of `nearzip.torch.restore`. `strict=False` restores the tensors that
        fit: the backbone below another head, a network whose vocabulary has grown. Random generators are restored in
        the process that saved them: in the others of a training they would draw the same numbers.

        Raises
        ------
        UsageError
            It does not fit; see `nearzip.torch.restore`. Nothing is changed.
        NotFoundError, CorruptError
            No such version; or it is damaged.
        """
        self.wait()
        try:
            number = self.store.resolve(version)
        except NotFoundError:
            if version == "latest":
                return None
            raise
        small = TrainingState.from_arrays(self.store.checkout(number))
        restored = restore(
            small.expanded(), model, optimizer, scheduler, scaler=scaler, loader=loader, rng=rng and self.writes,
            strict=strict, rename=self._rename,
        )  # fmt: skip
        self._predictions = small.predictions()
        self._shapes.know(small)
        return dataclasses.replace(restored, version=number)


def _is_lossy(codings: Codings) -> bool:
    """Whether a bound other than lossless was asked for."""
    asked = [coding.bound for coding in (codings.default, *codings.by_pattern.values())]
    return any(bound is not None and not isinstance(bound, Lossless) for bound in asked)


def _numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as the store takes them: plain numbers, tensors of one value included."""
    return {str(name): _number(name, value) for name, value in (metrics or {}).items()}


def _number(name: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"metric {name!r} is {value!r}, not a number") from None
