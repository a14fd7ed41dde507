"""Condensing within a budget: the search, its trials on disk and in processes, objectives, and bad input."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import torch
from torch import nn

import nearzip as nz
from nearzip import condense
from nearzip.condense.execution import SparseLinear, compare_speed
from nearzip.condense.flops import count_flops
from nearzip.condense.objectives import Objective
from nearzip.errors import BudgetError, CorruptError, Error, UsageError
from nearzip.torch import evaluator

ROOT = Path(__file__).parents[1]


def data(n, seed):
    """Eight classes around eight centres in 16 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 8, (n,), generator=generator)
    return centres[targets] + 0.9 * torch.randn(n, 16, generator=generator), targets


TRAIN, HELD_OUT = data(512, 1), data(1000, 2)


def train_epoch(module, factor=1.0):
    optimizer = torch.optim.SGD(module.parameters(), 0.1 * factor, 0.9)
    for rows in torch.randperm(512).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(TRAIN[0][rows]), TRAIN[1][rows]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 8))
    for _ in range(6):
        train_epoch(module)
    return module.eval()


@pytest.fixture(scope="module")
def judge(network):
    return evaluator(network, [HELD_OUT], "top1")


FAST = condense.LC(4)


def test_names_that_scripts_rely_on():
    assert {
        "LC", "Condensed", "Direct", "Gradual", "Prune", "Quantize", "Structure", "compress", "fit", "tune",
    } <= set(condense.__all__)  # fmt: skip


def test_a_search_keeps_its_budget_on_what_the_archive_restores(network, judge, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []
    small = condense.tune(
        network, train_epoch, evaluate=judge, max_loss=0.02, recover=FAST, samples=4, progress=seen.append
    )
    small.archive.save(tmp_path / "small.nz")
    restored = nz.decompress(tmp_path / "small.nz")
    assert judge(network.state_dict()) - judge(restored) == pytest.approx(small.losses["top1"])
    assert small.losses["top1"] <= 0.02 + 1e-9
    assert small.keep < 0.7
    assert small.ratio > 8
    assert all(np.array_equal(value, restored[name]) for name, value in small.archive.restored.items())
    assert len(small.trials) == len(seen) <= 4
    assert seen[-1].most == 4
    again = condense.fit(nn.Sequential(*(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m
                                         for m in network)), restored)  # fmt: skip
    assert torch.equal(again.eval()(HELD_OUT[0]), small.module(HELD_OUT[0]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    document = json.loads(json.dumps(small.to_json(), allow_nan=False))
    assert document["trials"][0]["stage"] == "search"
    assert "x smaller" in str(small)


def test_a_structured_search_thins_and_counts_operations(network, judge):
    small = condense.tune(
        network, train_epoch, evaluate=judge, max_loss=0.03, scheme=condense.Structure(align=2), objective="flops",
        inputs=HELD_OUT[0][:4], recover=FAST, samples=3,
    )  # fmt: skip
    assert small.objective["gain"] > 1.2
    assert small.objective["after"] == count_flops(small.module, HELD_OUT[0][:4])
    assert small.module[0].out_features < 48
    assert small.module[4].out_features == 8
    assert small.notes == ("4: makes the network's outputs",)
    shapes = {name: list(value.shape) for name, value in nz.decompress(small.archive.to_bytes()).items()}
    assert shapes["0.weight"] == small.chosen.shapes["0.weight"]


def test_a_budget_that_nothing_meets_says_the_best_reached(network, judge):
    def untrained(module):
        torch.optim.SGD(module.parameters(), 0.0).step()

    with pytest.raises(
        BudgetError, match=r"no share tried is within .* 1 trainings; the best reached, keep .* loses"
    ) as e:
        condense.tune(network, untrained, evaluate=judge, max_loss=0.0, recover=condense.Direct(1), samples=1,
                      scheme=condense.Structure(align=4), objective="flops", inputs=HELD_OUT[0][:4])  # fmt: skip
    assert e.value.exit_code == 15
    with pytest.raises(BudgetError, match=r"keep 0.01 loses top1"):
        condense.compress(network, keep=0.01, evaluate=judge, max_loss=0.01)


# ---- trials on disk and in processes ---------------------------------------------------------------------------


def test_an_interrupted_search_goes_on_with_its_networks(network, judge, tmp_path):
    calls = []

    def counted(module, factor=1.0):
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt
        train_epoch(module, factor)

    options = {"evaluate": judge, "max_loss": 0.02, "recover": FAST, "samples": 3, "evaluations": 4}
    whole = condense.tune(network, train_epoch, **options)
    with pytest.raises(KeyboardInterrupt):
        condense.tune(network, counted, trials=tmp_path, **options)
    filed = {path.name for path in tmp_path.iterdir()}
    assert sum(name.endswith(".net.nz") for name in filed) == 1
    calls[:] = [1] * -1000
    calls = []
    resumed = []

    def going_on(module, factor=1.0):
        resumed.append(1)
        train_epoch(module, factor)

    going_on.__qualname__ = counted.__qualname__
    small = condense.tune(network, going_on, trials=tmp_path, **options)
    assert len(resumed) == 4 * (len(small.trials) - 1)
    assert small.archive.to_bytes() == whole.archive.to_bytes()
    resumed.clear()
    condense.tune(network, going_on, trials=tmp_path, **options)
    assert not resumed


def test_filed_trials_are_checked(network, judge, tmp_path):
    options = {"evaluate": judge, "max_loss": 0.3, "recover": condense.Direct(1), "samples": 1, "evaluations": 2}
    condense.tune(network, train_epoch, trials=tmp_path, **options)
    document = next(tmp_path.glob("*.json"))
    text = document.read_text()
    for change in (
        lambda t: t.replace('"seed": 0', '"seed": "0"'),
        lambda t: t.replace('"network_id": "', '"network_id": "0'),
        lambda t: t.replace('"key": "', '"key": "0'),
        lambda t: t[:-20],
    ):
        document.write_text(change(text))
        with pytest.raises(CorruptError):
            condense.tune(network, train_epoch, trials=tmp_path, **options)
    document.write_text(text)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; trials need a folder"):
        condense.tune(network, train_epoch, trials=tmp_path / "file", **options)


def test_trials_run_on_dask(network, dask_workers):
    small = condense.tune(
        network,
        train_epoch,
        evaluate=_distance,
        max_loss=2.0,
        recover=condense.Direct(1),
        samples=2,
        evaluations=2,
    )
    assert len(small.trials) == 2


def _distance(tensors):
    return -float(sum((a.size - np.count_nonzero(a)) / a.size for a in tensors.values()))


# ---- strategies ------------------------------------------------------------------------------------------------


class Cliff:
    """A network whose loss is known at every share: a stand-in for trainings."""

    def __init__(self, at, most, objective="bytes", continuous=True):
        from types import SimpleNamespace

        self.at, self.most, self.trials, self.seed = at, most, [], 0
        self.prepared = SimpleNamespace(snap=lambda keep: float(f"{keep:.4g}"), key=lambda keep: keep)
        aim = Objective("bytes")
        self.work = SimpleNamespace(objective=aim, one_shot=lambda keep, _: self.usage(keep) * 4)

    def usage(self, keep):
        return (self.at / keep) ** 1.7

    left = property(lambda self: self.most - len(self.trials))
    feasible = property(lambda self: [t for t in self.trials if t.fits])
    best = property(lambda self: min(self.feasible, key=lambda t: t.keep, default=None))

    def workers(self):
        return 1

    def run(self, keeps, stage, again=0):
        from types import SimpleNamespace

        made = []
        for keep in keeps:
            usage = self.usage(keep)
            made.append(SimpleNamespace(keep=keep, usage=usage, recovered=usage, fits=usage <= 1, nearly=False,
                                        noise=0.01, objective=1e6 * keep if usage <= 1 else None))  # fmt: skip
        self.trials += made
        return made


@pytest.mark.parametrize("at", [0.4, 0.1, 0.03, 0.008, 0.003])
def test_five_trainings_find_the_share_within_ten_percent(at):
    from nearzip.condense.search import search

    worth = [2.0 ** (-10 * i / 40) for i in range(1, 41)]
    found = search(Cliff(at, 5), worth)
    assert found.keep <= 1.1 * at


def test_a_near_miss_is_repeated_in_a_narrow_bracket_and_not_in_a_wide_one():
    from nearzip.condense.search import search

    class Noisy(Cliff):
        repeated = ()

        def run(self, keeps, stage, again=0):
            high = min((t.keep for t in self.feasible), default=1.0)
            made = super().run(keeps, stage, again)
            for trial in made:
                trial.nearly = 1 < trial.usage < 3
            if again:
                self.repeated += ((keeps[0], math.log2(high / keeps[0])),)
            return made

    runner = Noisy(0.03, 9)
    found = search(runner, [2.0 ** (-10 * i / 40) for i in range(1, 41)])
    assert found.keep <= 1.05 * 0.03
    assert runner.repeated
    assert all(width < 0.3 for _, width in runner.repeated)
    assert len({keep for keep, _ in runner.repeated}) == len(runner.repeated)


@pytest.mark.parametrize("coordinate", ["linear", "log2"])
@pytest.mark.parametrize("at", [0.4, 0.05])
def test_condensas_search_takes_ten_samples(coordinate, at):
    from nearzip.condense.condensa import Condensa

    runner = Cliff(at, 10)
    found = Condensa(coordinate).search(runner)
    assert len(runner.trials) <= 10
    assert found is not None
    if coordinate == "log2":
        assert found.keep <= 1.5 * at


def test_the_posterior_is_that_of_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    from nearzip.condense.condensa import Posterior

    points, values, noise = [0.0, 0.3, 0.5, 0.9], [0.0, -0.5, -1.5, -4.0], [0.1, 0.2, 0.2, 0.1]
    ours = Posterior.of(points, values, noise)
    scaled = (np.array(values) - ours.mean) / ours.size
    oracle = GaussianProcessRegressor(
        Matern(ours.length, nu=2.5), alpha=(np.array(noise) / ours.size) ** 2, optimizer=None
    ).fit(np.array(points)[:, None], scaled)
    at = np.linspace(0, 1, 7)
    mean, deviation = oracle.predict(at[:, None], return_std=True)
    np.testing.assert_allclose(ours(at)[0], ours.mean + ours.size * mean, atol=1e-8)
    np.testing.assert_allclose(ours(at)[1], ours.size * deviation, atol=1e-6)


def test_condensas_search_runs_and_is_imported_by_nothing(network, judge):
    importing = re.compile(r"^\s*(from|import) .*\bcondensa\b", re.MULTILINE)
    assert not [path for path in (ROOT / "src").rglob("*.py") if importing.search(path.read_text())]
    code = "import sys, nearzip.condense; raise SystemExit('nearzip.condense.condensa' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    small = condense.tune(
        network, train_epoch, evaluate=judge, max_loss=0.2, recover=condense.Direct(2), samples=5, evaluations=2,
        strategy="condensa", coordinate="log2",
    )  # fmt: skip
    assert len(small.trials) <= 5


# ---- objectives ------------------------------------------------------------------------------------------------


def test_operations_are_counted_by_hand():
    tokens = torch.randn(2, 5, 8)
    linear = 2 * 2 * 5 * 8 * 16
    assert count_flops(nn.Linear(8, 16), tokens) == linear
    assert count_flops(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)) == 2 * 2 * 4 * 6 * 6 * 27

    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    heads = torch.randn(2, 2, 5, 4)
    attention = 2 * (2 * 2 * 2 * 5 * 5 * 4)
    assert count_flops(Attention(), heads) == attention
    lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
    assert count_flops(lstm, tokens) == 2 * 10 * 64 * (8 + 16) + 2 * 10 * 64 * (16 + 16)

    class Multi(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x, need_weights=False)

    multi = 4 * 2 * 2 * 5 * 8 * 8 + attention
    assert count_flops(Multi(), tokens) == multi
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count_flops(encoder, tokens) == multi + 2 * linear


def test_mostly_zero_linear_layers_run_sparse(network):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
    small = condense.compress(module, keep=0.05, scheme=condense.Prune(only=("0.*",))).module
    fast = condense.sparse(small)
    assert isinstance(fast[0], SparseLinear)
    assert isinstance(fast[2], nn.Linear)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(fast(x), small(x), rtol=1e-5, atol=1e-6)
    assert isinstance(condense.sparse(small[0]), SparseLinear)
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert Objective("throughput", x, rounds=2).measure(small, module).value > 0
    with pytest.raises(UsageError, match="zeros is a share"):
        condense.sparse(small, 0)


def test_speed_is_measured_in_turns_on_one_thread():
    small, large = nn.Linear(8, 8), nn.Linear(2000, 2000)
    before = torch.get_num_threads()

    class Both(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x[:, : self.layer.in_features])

    speed = compare_speed(Both(large), Both(small), torch.randn(32, 2000), rounds=5)
    assert speed.lower <= speed.ratio <= speed.upper
    assert speed.ratio > 1
    assert (speed.threads, speed.rounds, torch.get_num_threads()) == (1, 5, before)


def test_objectives_of_ones_own_and_the_papers_count(network):
    small = condense.compress(network, keep=0.1, objective="nonzeros16")
    n = sum(int((p != 0).sum()) for p in small.module.parameters())
    assert small.objective["after"] == 2 * n
    assert small.objective["before"] == 4 * sum(p.numel() for p in network.parameters())
    own = condense.compress(network, keep=0.1, objective=lambda module: float((module[0].weight == 0).float().mean()))
    assert own.objective["after"] > 0.8


def test_pruning_that_changes_no_operations_is_said(network, judge):
    with pytest.raises(UsageError, match=r"no share of Prune.* improves the objective 'flops'"):
        condense.tune(network, train_epoch, evaluate=judge, max_loss=0.1, objective="flops", inputs=HELD_OUT[0][:2])


# ---- bad input -------------------------------------------------------------------------------------------------


def failing(tensors):
    raise RuntimeError("no data")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"evaluate": None}, UsageError, "needs evaluate"),
        ({"evaluate": failing}, Error, "evaluate raised RuntimeError on the original network: no data"),
        ({"evaluate": lambda t: math.nan}, Error, "evaluate returned nan as 'score' of the original network"),
        ({"max_loss": -1}, UsageError, "max_loss of every metric is a number from 0 on"),
        ({"objective": lambda module: math.nan}, UsageError, "objective <lambda> returned nan; it must"),
        ({"objective": "speed"}, UsageError, "objective is one of bytes, flops, throughput"),
        ({"objective": "throughput"}, UsageError, "the objective 'throughput' needs inputs="),
        ({"scheme": "prune"}, UsageError, r"scheme is Prune\(\), Structure\(\), Quantize\(\)"),
        ({"scheme": condense.Quantize(4)}, UsageError, "has no share to search for"),
        ({"recover": "lc"}, UsageError, r"recover is LC\(\), Gradual\(\) or Direct\(\)"),
        ({"strategy": "best"}, UsageError, "strategy is one of nearzip, condensa, not 'best'"),
        ({"coordinate": "log2"}, UsageError, "strategy 'nearzip' has no parameter 'coordinate'"),
        ({"strategy": "condensa", "coordinate": "x"}, UsageError, "coordinate is 'linear' or 'log2'"),
        ({"samples": 0}, UsageError, "samples is a positive number"),
    ],
)  # fmt: skip
def test_bad_input_of_a_search_is_one_line(network, changes, kind, message):
    given = {"evaluate": _distance, "max_loss": 1.0, "recover": condense.Direct(1), "samples": 1, **changes}
    with pytest.raises(kind, match=message) as raised:
        condense.tune(network, train_epoch, **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keep", [0, 1.5, -0.1, math.nan, True, "half"])
def test_keep_is_a_share(network, keep):
    with pytest.raises(UsageError, match="keep is the share of a network that is kept, above 0 and at most 1, not"):
        condense.compress(network, keep=keep)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: condense.LC(-1), "epochs is a whole number"),
        (lambda: condense.LC(4, finetune=1.0), "finetune is a share"),
        (lambda: condense.LC(4, kappa=0), "kappa is a positive number"),
        (lambda: condense.LC(4, lr_end=2), "lr_end is a factor"),
        (lambda: condense.LC(4, epochs_per_step=0), "epochs_per_step is a whole number from 1 on"),
        (lambda: condense.Structure(align=0), "align is a whole number from 1 on"),
        (lambda: condense.Quantize(17), "Quantize takes 1 to 16 bits"),
        (lambda: condense.Prune(keep=2), "keep is the share"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_function_that_fails_on_a_trial_is_named(network):
    calls = []

    def fails_later(tensors):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("gone")
        return 1.0

    with pytest.raises(Error, match=r"evaluate raised RuntimeError on the (un|net)"):
        condense.tune(network, train_epoch, evaluate=fails_later, max_loss=0.1, recover=condense.Direct(1), samples=1)


def test_an_evaluator_that_wavers_is_said(network):
    values = iter([1.0] * 3 + [0.0] * 100)
    with pytest.raises((UsageError, BudgetError)):
        condense.compress(network, keep=0.5, evaluate=lambda t: next(values), max_loss=0.1, bound="lossless")


def test_sparse_layers_with_several_names_or_hooks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.again = nn.Linear(8, 8)
            self.hooked = nn.Linear(8, 8)

        def forward(self, x):
            return self.hooked(self.again(self.first(x)))

    net = Net()
    for weight in (net.first.weight, net.hooked.weight):
        weight.data[1:] = 0
    hook = net.hooked.register_forward_hook(lambda layer, inputs, output: output + 1)
    x, found = torch.ones(2, 8), condense.sparse(net, 0.5)
    assert found.first is found.again
    assert type(found.first).__name__ == "SparseLinear"
    assert torch.allclose(found(x), net(x), atol=1e-5)
    hook.remove()
