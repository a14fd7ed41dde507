"""Training for limits: every measure with a gradient gets better, and multipliers follow the limits."""

from __future__ import annotations

import copy

import pytest

import nearzip as nz
from nearzip.errors import UsageError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nearzip.correctness import Cost, Objective, Robustness  # noqa: E402
from nearzip.torch import ErrorFeedback, evaluator, finetune, prune  # noqa: E402
from tests.correctness.networks import Tokens, arrays, noisy, picture_batches, pictures  # noqa: E402

NET = pictures()
BATCHES = picture_batches(NET, 80)
LOSSES = {
    "top1": 0.01, "class/*": 0.01, "churn": 0.01, "agreement": 0.01, "flips/worse": 0.01, "cost": 0.01, "kl": 0.001,
    "embedding/cosine": 0.01, "distance": 0.01, "loss": 0.01, "perplexity": 0.01,
}  # fmt: skip
DEEP = {"attribution/saliency": 0.05, "boundary/random": 0.02, "boundary/worst": 0.05}


def disturbed():
    student = pictures()
    student.load_state_dict({name: torch.from_numpy(w) for name, w in noisy(NET, 0.25).items()})
    return student


def trained(objective, steps=25, rate=0.02):
    student = disturbed().train()
    optimizer = torch.optim.Adam(student.parameters(), rate)
    for _ in range(steps):
        for batch in BATCHES:
            optimizer.zero_grad()
            objective(student, batch).backward()
            optimizer.step()
    return student.eval()


@pytest.mark.parametrize("name", LOSSES)
def test_each_measure_of_outputs_gets_better(name):
    objective = Objective(NET, {name: LOSSES[name]}, task="none")
    check = Objective(NET, {name: LOSSES[name]}, data=BATCHES)
    before, after = (max(check.update(each).values()) for each in (disturbed(), trained(objective)))
    assert after < before


@pytest.mark.parametrize("name", DEEP)
def test_each_measure_that_calls_the_network_gets_better(name):
    pytest.importorskip("captum")
    objective = Objective(NET, {name: DEEP[name]}, task="none", rows=40)
    check = Objective(NET, {name: DEEP[name]}, data=BATCHES)
    before, after = (max(check.update(each).values()) for each in (disturbed(), trained(objective, 12)))
    assert after < before


def test_robustness_to_noise_is_trained_on_what_the_original_says():
    objective = Objective(NET, {"robust/gauss:0.1": 0.01}, measures=[Robustness(["gauss:0.1"])], task="none", rows=40)
    before, after = (float(_divergence(each)) for each in (disturbed(), trained(objective, 12)))
    assert after < before


def _divergence(student):
    x = torch.cat([x for x, _ in BATCHES])
    with torch.no_grad():
        ours, theirs = (net(x).log_softmax(-1) for net in (student, NET))
    return nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def test_multipliers_are_raised_while_a_limit_is_missed_and_lowered_after():
    objective = Objective(NET, {"churn": 0.01, "kl": 100.0}, start=1.0, rate=0.5)
    for batch in BATCHES:
        objective(disturbed(), batch)
    losses = objective.update(disturbed())
    assert losses["churn"] > 0.01
    assert objective.multipliers["churn"] == pytest.approx(1 + 0.5 * min(3, losses["churn"] / 0.01 - 1))
    assert objective.multipliers["kl"] == pytest.approx(0.5, abs=0.01)
    assert not objective.kept
    for _ in range(5):
        objective.update(NET)
    assert objective.multipliers == {"churn": 0.0, "kl": 0.0}
    assert objective.kept


def test_a_multiplier_of_zero_leaves_plain_training():
    objective = Objective(NET, {"churn": 0.5}, start=0.0)
    student = disturbed().train()
    x, y = BATCHES[0]
    expected = nn.functional.cross_entropy(copy.deepcopy(student)(x), y).detach()
    assert float(objective(student, (x, y)).detach()) == pytest.approx(float(expected), rel=1e-6)


def test_an_identical_network_has_no_loss_beyond_the_task():
    objective = Objective(NET, {"kl": 0.01, "embedding/cosine": 0.01}, task="none")
    assert float(objective(NET, BATCHES[0]).detach()) == pytest.approx(0.0, abs=1e-6)


def test_running_statistics_are_those_of_the_data():
    """Measures that call the network on other inputs leave its batch norms alone."""
    pytest.importorskip("captum")
    plain, deep = disturbed().train(), disturbed().train()
    Objective(NET, {"kl": 1.0})(plain, BATCHES[0])
    Objective(NET, {"kl": 1.0, "attribution/saliency": 0.1, "boundary/random": 0.1})(deep, BATCHES[0])
    assert torch.equal(plain[1].running_mean, deep[1].running_mean)
    assert deep[1].training


def test_with_finetune_zeros_stay():
    objective = Objective(NET, {"kl": 0.01}, task="none")
    student = copy.deepcopy(NET)
    prune(student, 0.1)
    before = Objective(NET, {"kl": 0.01}, data=BATCHES).update(student)["kl"]
    optimizer = torch.optim.SGD(student.parameters(), 0.005)

    def train_epoch(module):
        for batch in BATCHES:
            optimizer.zero_grad()
            objective(module, batch).backward()
            optimizer.step()
        return objective.update(module)["kl"]

    losses = finetune(student, train_epoch, epochs=10, keep=0.1)
    assert losses[-1] < before
    assert float((student[0].weight == 0).float().mean()) == pytest.approx(0.9, abs=0.02)


def test_with_error_feedback_the_restored_network_is_trained():
    objective = Objective(NET, {"kl": 1e-3}, task="none")
    student = disturbed()
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    ErrorFeedback(student, optimizer, "nearzip", bound=nz.Absolute(0.02))

    def restored():
        tensors = {name: w.numpy() for name, w in student.state_dict().items()}
        return nz.compress(tensors, bound=nz.Absolute(0.02)).restored

    for batch in BATCHES:
        objective(student, batch)
    before = objective.update(student, restored())["kl"]
    for _ in range(15):
        for batch in BATCHES:
            optimizer.zero_grad()
            objective(student, batch).backward()
            optimizer.step()
    assert objective.update(student, restored())["kl"] < before / 2


def test_with_the_recovery_of_condense_the_original_is_what_is_trained_towards():
    """`condense` trains copies of the network; the objective's original stays the one it was given."""
    from nearzip import condense

    objective = Objective(NET, {"kl": 1e-6, "churn": 1e-3}, task="none")

    def train_epoch(module, factor=1.0):
        optimizer = torch.optim.Adam(module.parameters(), 0.01 * factor)
        for batch in BATCHES * 4:
            optimizer.zero_grad()
            objective(module, batch).backward()
            optimizer.step()
        objective.update(module)

    judge = evaluator(NET, BATCHES, "kl")
    once, trained_back = (
        condense.compress(NET, *train, keep=0.05, recover=recover)
        for train, recover in (((), None), ((train_epoch,), condense.Direct(epochs=4)))
    )
    found = [judge(small.archive.restored) for small in (once, trained_back)]
    assert found[1] > found[0]
    assert set(objective.losses) == {"kl", "churn"}


def test_language_models_and_regressors():
    torch.manual_seed(0)
    model = Tokens()
    ids = torch.randint(7, (8, 9))
    batch = {"input_ids": ids, "labels": ids}
    student = Tokens()
    objective = Objective(model, {"kl": 0.01, "perplexity": 0.1})
    first = float(objective(student, batch).detach())
    assert first > 0
    line, other = nn.Linear(3, 1), nn.Linear(3, 1)
    data = torch.randn(10, 3), torch.randn(10)
    assert float(Objective(line, {"distance": 0.1})(other, data).detach()) > 0


def test_its_own_costs():
    d = [[0, 1, 1, 1, 1], [5, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 0]]
    objective = Objective(NET, {"cost": 0.01}, measures=[Cost(d)], task="none")
    assert list(objective.multipliers) == ["cost"]
    judge = evaluator(NET, BATCHES, Cost(d))
    assert judge(arrays(trained(objective))) > judge(arrays(disturbed()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(NET, {}), "has limits by metric"),
        (lambda: Objective(NET, {"churn": "x"}), "max_loss of churn"),
        (lambda: Objective(NET, {"churn": 0.1}, task="hinge"), "a task is"),
        (lambda: Objective(NET, {"churn": 0.1}, rate=0), "rate is a positive one"),
        (lambda: Objective(NET, {"nonsense": 0.1}), "name no measure"),
        (lambda: Objective(NET, {"churn": 0.1}).update(NET), "update comes after some batches"),
        (lambda: Objective(NET, {"robust/linf:2": 0.1})(NET, BATCHES[0]), "not attacks"),
        (lambda: Objective(NET, {"loss": 0.1})(NET, BATCHES[0][0]), "needs targets"),
    ],
)
def test_what_cannot_be_trained_on(make, message):
    with pytest.raises(UsageError, match=message):
        make()
