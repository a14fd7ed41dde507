"""Recovery: the L-C optimizer against the algorithm written out by hand, schedules, and the user's own training."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from nearzip import condense
from nearzip.condense.recovery import Job
from nearzip.condense.training import Training, restimate
from nearzip.errors import Error, UsageError
from nearzip.network import steps
from nearzip.recipes.retrain import Hold
from nearzip.torch.finetune import holding

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(64, 6), torch.randint(0, 3, (64,))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loss_of(module, rows=slice(None)):
    return nn.functional.cross_entropy(module(INPUTS[rows]), TARGETS[rows])


class Sgd:
    """One epoch of two plain batches."""

    def __init__(self, lr=0.1, momentum=0.9):
        self.lr, self.momentum, self.factors = lr, momentum, []

    def __call__(self, module, factor=1.0):
        self.factors.append(factor)
        optimizer = torch.optim.SGD(module.parameters(), self.lr * factor, self.momentum)
        for rows in (slice(0, 32), slice(32, 64)):
            optimizer.zero_grad()
            loss_of(module, rows).backward()
            optimizer.step()


def job(module, train, keep=0.3, scheme=None):
    prepared = (scheme or condense.Prune()).prepare(module)
    return Job(module, prepared, keep, Training(train))


def nonzeros(module):
    return sum(int((p != 0).sum()) for p in module.parameters() if p.dim() > 1)


def test_l_c_is_the_published_algorithm():
    """Every step by hand: penalty and multipliers in the gradient, momentum anew each L step, C step, multipliers."""
    mu_init, growth, steps, lr, momentum, keep = 0.05, 1.5, 5, 0.1, 0.9, 0.3
    recover = condense.LC(steps, finetune=0.0, gradual=False, mu=mu_init, growth=growth)
    found = recover.run(job(network(), Sgd(lr, momentum), keep))

    module = network()
    names = ["0.weight", "2.weight"]
    own = dict(module.named_parameters())
    project = condense.Prune().prepare(module).project
    theta = project({name: own[name] for name in names}, keep)
    lam = {name: torch.zeros_like(theta[name]) for name in names}
    mu = 0.0
    for j in range(steps):
        mu = 0.0 if j == 0 else mu_init if mu == 0 else mu * growth
        velocity = {name: torch.zeros_like(p) for name, p in own.items()}
        for step, rows in enumerate((slice(0, 32), slice(32, 64))):
            gradients = dict(zip(own, torch.autograd.grad(loss_of(module, rows), list(own.values())), strict=True))
            with torch.no_grad():
                for name, p in own.items():
                    g = gradients[name]
                    if name in names:
                        g = g + mu * (p - theta[name]) - lam[name]
                    velocity[name] = g if step == 0 else momentum * velocity[name] + g
                    p -= lr * velocity[name]
        w = {name: own[name].detach().clone() for name in names}
        theta = project({name: w[name] - lam[name] / mu if mu else w[name] for name in names}, keep)
        lam = {name: lam[name] - mu * (w[name] - theta[name]) for name in names}
    for name in names:
        torch.testing.assert_close(dict(found.named_parameters())[name].detach(), theta[name], rtol=1e-4, atol=1e-6)


def test_kappa_sets_the_penalty_by_how_far_training_moves(monkeypatch):
    seen = []
    original = condense.LC._mu
    monkeypatch.setattr(condense.LC, "_mu", lambda self, *args: seen.append(original(self, *args)) or seen[-1])
    condense.LC(8, finetune=0.25, kappa=0.1, kappa_end=1.6).run(job(network(), Sgd(0.1, 0.9)))
    pull = 2 * 0.1 / (1 - 0.9)  # two steps
    assert seen[0] == 0
    assert [mu * pull for mu in seen[1:]] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_l_c_removes_gradually_and_pulls_only_what_the_projection_changed(monkeypatch):
    targets = []

    def seeing(module, hold):
        if hold.weight:
            targets.append({name: torch.as_tensor(value).clone() for name, value in hold.near.items()})
        return holding(module, hold)

    monkeypatch.setattr("nearzip.condense.recovery.holding", seeing)
    small = job(network(), Sgd(), 0.25)
    condense.LC(7, finetune=0.3).run(small)
    free = [sum(int(target.isnan().sum()) for target in one.values()) for one in targets]
    # Five L steps; the first one trains the network that is cut to the first share.
    assert free == [round(72 * (0.25 + 0.75 * (1 - (j + 1) / 5) ** 3)) for j in range(1, 5)]
    assert nonzeros(small.module) == round(0.25 * 72)


def test_values_that_nothing_pulls_train_as_without_a_penalty():
    module, other = network(), network()
    near = {"0.weight": torch.full((8, 6), torch.nan).numpy(), "2.weight": torch.zeros(3, 8).numpy()}
    near["0.weight"][0, 0] = 0.0
    for one, hold in ((module, Hold(near=near, weight=1e3)), (other, Hold())):
        with holding(one, hold):
            optimizer = torch.optim.SGD(one.parameters(), 1e-3)
            loss_of(one).backward()
            optimizer.step()
    same = module[0].weight == other[0].weight
    assert not same[0, 0]
    assert int(same.sum()) == 47


@pytest.mark.parametrize("recover", [condense.LC(6), condense.Gradual(6), condense.Direct(6)])
def test_recoveries_keep_exactly_the_share_and_lower_the_loss(recover):
    module = network()
    for _ in range(20):
        Sgd()(module)
    cut = condense.compress(module, keep=0.25).module
    train = Sgd()
    found = recover.run(job(copy.deepcopy(module), train, 0.25))
    assert nonzeros(found) == nonzeros(cut) == round(0.25 * 72)
    assert loss_of(found) < loss_of(cut)
    assert len(train.factors) == 6
    assert train.factors[-1] == pytest.approx(0.1)


def test_gradual_removes_along_a_cubic():
    kept = []
    train = Sgd()

    def epoch(module, factor=1.0):
        kept.append(nonzeros(module))
        train(module, factor)

    condense.Gradual(8, finetune=0.25).run(job(network(), epoch, 0.25))
    expected = [round(72 * (0.25 + 0.75 * (1 - t / 6) ** 3)) for t in range(1, 7)]
    assert kept == [*expected, 18, 18]


def test_published_constants():
    lc = condense.LC.published("alexnet")
    assert (lc.mu, lc.growth, lc.mu_max, lc.finetune, lc.epochs) == (1e-3, 1.1, 1e4, 0.0, 77 + 33 * 8)
    with pytest.raises(UsageError, match="published constants are those of alexnet"):
        condense.LC.published("resnet")


def test_of_the_iterates_the_best_is_returned():
    scores = iter([3.0, 9.0, 1.0])
    module = network()
    one = job(module, Sgd())
    thetas = []

    def judge(candidate):
        thetas.append({name: p.detach().clone() for name, p in candidate.named_parameters()})
        return next(scores)

    one.judge = judge
    found = condense.LC(3, finetune=0.0).run(one)
    assert torch.equal(dict(found.named_parameters())["0.weight"], thetas[1]["0.weight"])


# ---- the user's training ---------------------------------------------------------------------------------------


def pulled(train):
    """The weights after one L step with a penalty, by a training of the user's."""
    torch.manual_seed(0)
    module = network()
    condense.LC(2, finetune=0.0, mu=0.5).run(job(module, train))
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def sgd_training(accumulate=1, clip=None, scaler=None, **options):
    def train(module, factor=1.0):
        optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, **options)
        amp = None if scaler is None else torch.amp.GradScaler("cpu", init_scale=scaler)
        for rows in (slice(0, 32), slice(32, 64)):
            optimizer.zero_grad()
            for part in torch.arange(64)[rows].split(32 // accumulate):
                loss = loss_of(module, part) / accumulate
                (loss if amp is None else amp.scale(loss)).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step() if amp is None else (amp.step(optimizer), amp.update())

    return train


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 4},
        {"clip": 1e6},
        {"scaler": 1024.0},
        {"fused": True},
        {"fused": True, "scaler": 1024.0},
        {"foreach": True},
    ],
    ids=str,
)
def test_the_penalty_counts_once_whatever_the_loop(options):
    torch.testing.assert_close(pulled(sgd_training(**options)), pulled(sgd_training()), rtol=1e-4, atol=1e-5)


def test_tied_parameters_are_pulled_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.c = nn.Linear(6, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    torch.manual_seed(0)
    small = condense.compress(Tied(), sgd_training(), keep=0.5, recover=condense.LC(4))
    assert small.module.a.weight is small.module.b.weight
    assert int((small.module.a.weight != 0).sum() + (small.module.c.weight != 0).sum()) == round(0.5 * 54)


def test_adam_measures_its_own_pull():
    training = Training(lambda module: adam(module, 1e-2))
    training.epoch(network())
    assert math.isfinite(training.pull)
    assert training.pull > 2 * 1e-2  # gradients are far below 1


def adam(module, lr):
    optimizer = torch.optim.AdamW(module.parameters(), lr)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(module).backward()
        optimizer.step()


def test_closures_are_refused_by_name():
    def train(module):
        optimizer = torch.optim.LBFGS(module.parameters())
        optimizer.step(lambda: loss_of(module))

    with pytest.raises(UsageError, match=r"an optimizer with a closure \(such as L-BFGS\)"):
        condense.compress(network(), train, keep=0.5)


def test_an_optimizer_of_another_module_is_refused():
    other = network()
    with pytest.raises(UsageError, match="took no optimizer step on the module"):
        condense.compress(network(), lambda module: Sgd()(other), keep=0.5)


def test_a_training_that_raises_is_named():
    def train(module):
        raise RuntimeError("out of data")

    with pytest.raises(Error, match="train_epoch raised RuntimeError: out of data"):
        condense.compress(network(), train, keep=0.5)


# ---- schemes ---------------------------------------------------------------------------------------------------


def test_exactly_k_are_kept_under_one_threshold_with_ties():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[1].weight.fill_(2.0)
    found = condense.Prune().prepare(module).project(dict(module.named_parameters()), 0.5)
    assert int((found["1.weight"] != 0).sum()) == 8
    assert found["0.weight"].flatten().tolist() == [1.0] * 4 + [0.0] * 12


def test_only_and_skip_choose_layers():
    module = network()
    assert condense.Prune(skip=("2.*",)).prepare(module).names == ("0.weight",)
    with pytest.raises(UsageError, match=r"no tensor is called 'x\*'"):
        condense.Prune(only=("x*",)).prepare(module)


@pytest.mark.parametrize(("bits", "most"), [(2, 4), ("float16", 100)])
def test_pruned_and_quantized_together(bits, most):
    small = condense.compress(
        network(), Sgd(), keep=0.5, scheme=(condense.Prune(), condense.Quantize(bits)), recover=condense.LC(4)
    )
    weight = small.module[0].weight.detach()
    assert nonzeros(small.module) == 36
    assert len(torch.unique(weight[weight != 0])) <= most
    if bits == "float16":
        assert torch.equal(weight, weight.half().float())


def test_a_tuple_prunes_by_keep_once():
    with pytest.raises(UsageError, match="exactly one prunes by keep"):
        condense.compress(network(), keep=0.5, scheme=(condense.Prune(), condense.Prune()))
    small = condense.compress(network(), keep=0.5, scheme=(condense.Prune(), condense.Prune(keep=0.5)))
    assert nonzeros(small.module) == 18


def test_statistics_of_batch_norm_are_estimated_anew():
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).train()
    module(INPUTS)
    with torch.no_grad():
        module[0].weight.mul_(3.0)
    restimate(module, [INPUTS[:32], INPUTS[32:]])
    expected = nn.functional.linear(INPUTS, module[0].weight, module[0].bias).detach()
    np.testing.assert_allclose(module[1].running_mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    assert module[1].momentum == 0.1
    assert module.training


def test_trainings_in_several_threads_leave_each_other_alone():
    """PyTorch's own list of hooks fails when another thread adds one during a step."""
    seen = [0] * 4

    def work(i):
        layer = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(layer.parameters(), 0.01)
        for _ in range(150):

            def after(stepped, *_, mine=optimizer):
                seen[i] += stepped is mine

            hooks = [steps.before_steps(lambda *_: None), steps.after_steps(after)]
            layer(torch.ones(3, 4)).sum().backward()
            optimizer.step()
            for hook in hooks:
                hook.remove()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert seen == [150] * 4
