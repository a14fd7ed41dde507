"""As small as possible, with at most so much lost: the search for settings, from the caller's side."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from nearzip.budget.budgets import MaxLoss, check_budgets
from nearzip.budget.deepsz import DeepSzSearch
from nearzip.budget.delta_dnn import THETA, DeltaDnnSearch
from nearzip.budget.evaluators import Evaluate
from nearzip.budget.intervals import check_confidence
from nearzip.budget.plan import TUNE, Plan
from nearzip.budget.search import EVALUATIONS, search
from nearzip.budget.spaces import space_of
from nearzip.budget.subject import Network
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Runner, Watch
from nearzip.errors import BudgetError, NotShownError, UsageError
from nearzip.fileio import Path_
from nearzip.version import __version__

__all__ = ["STRATEGIES", "check_tuned", "evaluations_of", "parameters_of", "plan_of", "tune"]

STRATEGIES = ("nearzip", "delta-dnn", "deepsz")
_FINDERS: dict[str, Any] = {"delta-dnn": DeltaDnnSearch, "deepsz": DeepSzSearch}


def tune(
    tensors: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    method: str = "nearzip",
    evaluate: Evaluate | None = None,
    max_loss: MaxLoss | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    knob: str | None = None,
    strategy: str = "nearzip",
    evaluations: int | None = None,
    trials: Path_ | None = None,
    seed: int = 0,
    confidence: float | None = None,
    rename: Mapping[str, str] | None = None,
    progress: Watch | None = None,
    **parameters: Any,
) -> Plan:
    """Find the settings that make the smallest archive within an accuracy budget.

    Every trial is compressed, restored from the stored bytes and given to `evaluate`; what the plan promises was
    measured that way, not predicted. Trials run through joblib: `with joblib.parallel_config(...)` around the call says
    where and how many at once.

    Parameters
    ----------
    tensors, base : mapping of str to array
        As for `compress`.
    method : str
        One of `methods()`; the search varies its bound, or the option that plays that role.
    evaluate : callable or Evaluator
        Takes a dict of arrays; returns a number, or a dict of numbers by metric. Higher is better.
        `nearzip.torch.evaluator` makes one.
    max_loss : float, str or dict
        The largest loss allowed against the original network: a number in evaluate's units, or a share of the
        original's score ("0.2%"). A dict limits metrics by name or pattern (``{"top1": 0.002, "class/*": "5%"}``);
        metrics that it does not name are recorded. May be left out for the strategy "delta-dnn" ("0.2%", the paper's)
        and where "deepsz" is given `max_bytes`.
    options : mapping
        The method's own settings, held fixed.
    knob : str
        What to turn: a kind of bound ("abs", "rel", "pwrel", "rms", "upd") or an option of the method that trades size
        for accuracy ("bits", "keep"). Default: the first kind of bound that the method promises, else such an option.
        "step": of the method "nearzip", without a bound; what `evaluations` leaves over five is spent on its options
        `unbiased` and `lattice`, at coarser steps, as long as they keep the budget.
    strategy : str
        "nearzip": ours. "delta-dnn": Algorithm 1 of Hu et al., ICPP 2020. "deepsz": Algorithms 1 and 2 of Jin et al.,
        HPDC 2019.
    evaluations : int
        Most trials of our strategy, besides two evaluations of the original. The papers' have their own ends.
    trials : path
        A folder where every trial is filed as soon as it is measured; a search that was interrupted goes on from there.
        Trials are reused for the same network, base, settings, release of nearzip and evaluator: a function of the same
        name and, if it has an attribute `identity` (a text, as `nearzip.torch.evaluator`'s have), of the same identity.
        One that would be chosen is measured once more.
    seed : int
        Python's, NumPy's and torch's global generators start from it at every evaluation; their states are restored
        afterwards.
    confidence : float
        0.95: a trial is within a budget only if the loss is shown to be, with 95 % confidence, by an evaluator that has
        samples. Default: the evaluator's own, or none.
    rename : mapping of str to str
        For tensors of the base that are called otherwise now: as for `compress`, which needs it too.
    progress : callable
        Called with a `Status` after every trial.
    **parameters
        Of the strategy: `candidates`, `alpha`, `beta`, `fallback`, `phi` ("relative" to the original's score, or
        "points") for "delta-dnn"; `starts`, `distortion`, `most_tests`, `most_combined`, `max_bytes` for "deepsz".
        With `max_bytes` it looks for the network that loses least in an archive of at most so many bytes, in place of
        the smallest one (expected-ratio mode).

    Returns
    -------
    Plan
        For `compress(tensors, base, plan=plan)`.

    Raises
    ------
    BudgetError
        No setting tried was within the budget, or none as small as `max_bytes`; the message says the best one reached.
    NotShownError
        With a confidence: no setting is shown to be within the budget; the message says how many samples would do.
    UsageError
        Invalid argument or combination of arguments; trials in the folder that another evaluator or release filed.
    Error
        `evaluate` raised, or gave no number for the original network.

    Warns
    -----
    UserWarning
        `evaluate` is not deterministic, or returned NaN for a trial, which counts as over the budget if the metric is
        limited.

    Examples
    --------
    >>> import numpy as np, nearzip as nz
    >>> w = {"w": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)}
    >>> def evaluate(tensors):  # in place of your network's accuracy
    ...     return -float(np.abs(tensors["w"] - w["w"]).mean())
    >>> plan = nz.tune(w, evaluate=evaluate, max_loss=0.01)
    >>> archive = nz.compress(w, plan=plan)
    >>> evaluate(w) - evaluate(archive.restored) <= 0.01, archive.nbytes == plan.nbytes
    (True, True)
    """
    finder = _finder(strategy, parameters)
    if max_loss is None and strategy == "delta-dnn":
        max_loss = THETA
    if evaluate is None or (max_loss is None and getattr(finder, "max_bytes", None) is None):
        raise UsageError("tune needs evaluate, a function of a dict of arrays, and max_loss")
    check_tuned({} if max_loss is None else max_loss, seed, confidence)
    subject = Network.of(tensors, base, evaluate, seed, rename)
    if finder is not None and evaluations is not None:
        raise UsageError(f"evaluations limits the strategy 'nearzip'; {strategy!r} {finder.ends}")
    most = evaluations_of(evaluations)
    space = space_of(subject, method, options, knob)
    space.at(space.start).default.checked()
    runner = Runner(subject, max_loss, trials, progress, confidence)
    if finder is None:
        runner.most = most
        chosen = runner.settled(lambda: search(runner, space, most))
    else:
        runner.most = getattr(finder, "most", 0)
        chosen = runner.settled(lambda: finder.search(runner, space))
    described = {"evaluations": most} if finder is None else asdict(finder)
    return plan_of(runner, chosen, method, {"name": strategy, "knob": knob, **described})


def check_tuned(max_loss: Any, seed: Any, confidence: Any = None) -> None:
    """Refuses what can be refused before anything is evaluated. Raises UsageError."""
    if confidence is not None:
        check_confidence(confidence)
    if type(seed) is not int:
        raise UsageError(f"a seed is an integer, not {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"a seed lies between -2^63 and 2^64 - 1, not {seed}")
    check_budgets(max_loss)


def _finder(strategy: str, parameters: Mapping[str, Any]) -> DeltaDnnSearch | DeepSzSearch | None:
    """None: ours."""
    _check_names(strategy, parameters)
    return _FINDERS[strategy](**parameters) if strategy in _FINDERS else None


def _check_names(strategy: str, parameters: Iterable[str]) -> None:
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    known = _FINDERS[strategy].__dataclass_fields__ if strategy in _FINDERS else {}
    for name in parameters:
        if name not in known:
            raise UsageError(f"strategy {strategy!r} has no parameter {name!r}; it takes {', '.join(known) or 'none'}")


def parameters_of(strategy: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """A strategy's parameters from texts; items of lists are separated by commas. Raises UsageError.

    Examples
    --------
    >>> parameters_of("delta-dnn", {"candidates": "0.01,0.02", "fallback": "1e-3"})
    {'candidates': [0.01, 0.02], 'fallback': 0.001}
    """
    _check_names(strategy, texts)
    return {
        name: _parsed(name, _FINDERS[strategy].__dataclass_fields__[name].default, text) for name, text in texts.items()
    }


def _parsed(name: str, default: Any, text: str) -> Any:
    """The value converted to the type of the parameter's default; None: an int."""
    try:
        if isinstance(default, tuple):
            return [float(item) for item in text.split(",")]
        if isinstance(default, str):
            return text
        return float(text) if isinstance(default, float) else int(text)
    except ValueError:
        kind = "numbers with commas between" if isinstance(default, tuple) else "a number"
        kind = kind if isinstance(default, (tuple, float)) else "a whole number"
        raise UsageError(f"{name} takes {kind}, not {text!r}") from None


def evaluations_of(wanted: int | None) -> int:
    """Most trials of our search. Raises UsageError."""
    if wanted is None:
        return EVALUATIONS
    if type(wanted) is not int or wanted < 1:
        raise UsageError(f"evaluations is a positive number, not {wanted!r}")
    return wanted


def _nothing_fits(runner: Runner, method: str) -> BudgetError:
    best = min(runner.trials, key=lambda trial: trial.usage)
    losses = ", ".join(f"{name} {best.losses[name]:.6g} of {allowed:g}" for name, allowed in runner.max_loss.items())
    reached = f"within the budget after {len(runner.trials)} trials; the best reached, {best.codings}, loses {losses}"
    if best.intervals and "broken" not in _verdicts(runner, best).values():
        return NotShownError(f"no setting of {method} is shown to be {reached}; {_enough(runner, best)}")
    return BudgetError(f"no setting of {method} is {reached}; allow more, or take a method that can be lossless")


def _verdicts(runner: Runner, trial: Trial) -> dict[str, str]:
    return {name: trial.intervals[name].verdict(allowed) for name, allowed in runner.max_loss.items()}


def _enough(runner: Runner, trial: Trial) -> str:
    """How many samples would show what was not shown."""
    open_ = [name for name, verdict in _verdicts(runner, trial).items() if verdict == "not shown"]
    needed = [trial.intervals[name].samples_needed(runner.max_loss[name]) for name in open_]
    known = [n for n in needed if n is not None]
    if not known or len(known) < len(needed):
        return "it loses too much for any number of samples to show otherwise; allow more"
    return f"about {max(known)} samples would show that it is; give the evaluator more"


def plan_of(
    runner: Runner,
    chosen: Trial | None,
    method: str,
    strategy: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a search that has ended. Raises BudgetError if it found nothing."""
    if chosen is None:
        raise _nothing_fits(runner, method)
    subject = runner.subject
    own = {"nearzip": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return Plan(
        codings={name: chosen.codings[name] for name in subject.names},
        chosen=chosen,
        trials=runner.trials,
        max_loss=runner.max_loss,
        original=runner.original,
        original_again=runner.original_again,
        network_id=runner.id,
        base_id=runner.base_id,
        original_bytes=subject.n_bytes,
        evaluate=runner.evaluate_name,
        strategy=dict(strategy),
        seed=subject.seed,
        versions=own | dict(versions or {}),
        made_by=dict(made_by or {"name": TUNE}),
        confidence=runner.confidence,
    )
