"""The one rule by which DeepSZ's tables choose error bounds and pruning steps, on held-out images only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import nearzip as nz
from experiments.papers.deepsz.case import Case, Row, at_bounds, compressed, layer_bytes, measured
from experiments.papers.deepsz.pruning import Correct, Tensors, paired
from nearzip.budget.deepsz.assess import DISTORTION
from nearzip.budget.deepsz.knapsack import Option, best_accuracy
from nearzip.coding import Codings

#: Allowed loss of the original's accuracy, the paper's expected loss: a share of 1.
MAX_LOSS = 0.002
#: Standard errors that must fit between the loss on the held-out images and `MAX_LOSS`. Held-out and test images are
#: two samples of the same size: their estimates of a loss differ by sqrt(2) standard errors, in 95 of 100 cases by less
#: than 1.645 times that to the worse side. A search tries many settings and takes what looks good, so a smaller margin
#: is not enough.
MARGIN = 1.645 * 2**0.5
METHODS = ("deepsz", "deepsz-nearzip")
Evaluate = Callable[[Tensors], dict[str, float]]


def careful(case: Case, pruned: Tensors, margin: float) -> Evaluate:
    """Score for `tune`: the accuracy on the held-out images less `margin` standard errors of its loss."""
    before = case.validation.right(case.original)

    def evaluate(tensors: Tensors) -> dict[str, float]:
        return scores(before, case.validation.right({**pruned, **tensors}), margin)

    return evaluate


def scores(before: Correct, after: Correct, margin: float) -> dict[str, float]:
    """Accuracy, and accuracy less a margin."""
    accuracy = float(after.mean())
    return {"careful": accuracy - margin * paired(before, after).error, "accuracy": accuracy}


def tuned(case: Case, pruned: Tensors, method: str, max_loss: float = MAX_LOSS, margin: float = MARGIN) -> Row | None:
    """`nz.tune` with DeepSZ's search on a pruned network; None if pruning alone has lost more than `max_loss`.

    `max_loss` counts from the original, margin included: what pruning has taken of it is not the search's to spend.
    """
    evaluate = careful(case, pruned, margin)
    budget = left(case, pruned, evaluate, max_loss)
    if budget < 0:
        return None
    plan = search(case, pruned, method, evaluate, budget)
    archive = nz.compress(case.tail(pruned), plan=plan, threads=1)
    return {
        "method": method, "room": budget, "evaluations": len(plan.trials), "bounds": bounds_of(plan.chosen.codings),
        "combined": sum(trial.stage == "combined" for trial in plan.trials),
        "trials": trials_of(plan), **measured(case, archive, pruned),
    }  # fmt: skip


def left(case: Case, pruned: Tensors, evaluate: Evaluate, max_loss: float = MAX_LOSS) -> float:
    """The part of `max_loss` that pruning has left."""
    return max_loss - (evaluate(case.original)["careful"] - evaluate(case.tail(pruned))["careful"])


def search(case: Case, pruned: Tensors, method: str, evaluate: Evaluate, budget: float) -> nz.Plan:
    """The call of a user: keep all weights that pruning left, and search for the bounds.

    Where pruning has left less than the 0.1 % that Algorithm 1 calls a distortion, its ranges begin at what is left: at
    0.1 % it passed over all bounds between 0.001 and 0.01 for a layer whose loss at 0.01 lay between the two.
    """
    return nz.tune(
        case.tail(pruned), method=method, strategy="deepsz", evaluate=evaluate, max_loss={"careful": budget},
        options={"keep": 1.0}, distortion=min(DISTORTION, budget),
    )  # fmt: skip


def bounds_of(codings: Codings) -> dict[str, float]:
    """Layers' bounds; 0 is exact."""
    return {name: float(getattr(coding.bound, "value", 0.0)) for name, coding in codings.by_name.items()}


def trials_of(plan: nz.Plan) -> list[Row]:
    """The assessed bounds, with what each layer lost alone."""
    rows = []
    for trial in plan.trials:
        if trial.stage == "assess":
            [(layer, bound)] = bounds_of(trial.codings).items()
            rows.append({"layer": layer, "bound": bound, "loss": trial.losses["accuracy"],
                         "careful_loss": trial.losses["careful"]})  # fmt: skip
    return rows


def chosen_step(steps: Mapping[str, Row], method: str) -> str | None:
    """The pruning step whose archive is the smallest; each keeps the budget and its margin on held-out images."""
    fine = [name for name, step in steps.items() if step[method]]
    return min(fine, key=lambda name: steps[name][method]["bytes"], default=None)


def zero_loss(case: Case, pruned: Tensors) -> Row:
    """Nothing may be lost of the pruned network's accuracy on the held-out images."""
    plan = search(case, pruned, "deepsz", careful(case, pruned, 0.0), 0.0)
    archive = nz.compress(case.tail(pruned), plan=plan, threads=1)
    return {"method": "deepsz", "bounds": bounds_of(plan.chosen.codings), **measured(case, archive, pruned)}


def expected_ratio(case: Case, tensors: Tensors, trials: list[Row]) -> Row:
    """The expected-ratio mode on what was assessed: 60x, or what the coarsest bounds allow."""
    options: dict[str, list[Option]] = {}
    for t in trials:
        n_bytes = layer_bytes(compressed("deepsz", tensors, {t["layer"]: t["bound"]}))[t["layer"]]
        options.setdefault(t["layer"], []).append(Option(t["bound"], t["loss"], n_bytes))
    least = sum(min(o.n_bytes for o in layer) for layer in options.values())
    wanted = min(60, int(case.fc_bytes() / least))
    chosen = best_accuracy(options, int(case.fc_bytes() / wanted))
    return {"wanted": wanted, **at_bounds(case, tensors, {name: o.bound for name, o in chosen.items()})}
