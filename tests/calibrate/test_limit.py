"""The least rate at a divergence, against closed forms and against what its own test channel leaves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from nearzip import calibrate
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.sensitivity import gather
from nearzip.calibrate.water import Water
from nearzip.errors import UsageError
from tests.calibrate.networks import Attention, Tied, convolutions, images, words


@pytest.mark.parametrize("ratio", [1.0, 2.0, 100.0, 1e9])
def test_equal_components_take_half_the_logarithm_of_the_ratio(ratio):
    n, variance = 1000, 0.3
    water = Water.of(np.full(n, variance))
    assert water.bits(n * variance / ratio) == pytest.approx(n * math.log2(ratio) / 2, rel=1e-9, abs=1e-6)


def test_components_below_the_water_take_nothing():
    water = Water.of([9.0, 0.5, 1.0, 0.0])
    # Two are above the level of 0.75: 0.5 is left of the third.
    assert water.level(2.0) == pytest.approx(0.75)
    assert water.bits(2.0) == pytest.approx(math.log2(9 / 0.75) / 2 + math.log2(1 / 0.75) / 2)


def test_high_rates_have_the_geometric_mean():
    energies = np.exp(np.random.default_rng(0).normal(0, 2, 500))
    distortion = 500 * energies.min() / 2
    expected = (np.log2(energies).sum() - 500 * math.log2(distortion / 500)) / 2
    assert Water.of(energies).bits(distortion) == pytest.approx(expected)


def test_the_level_leaves_the_distortion_asked_for():
    energies = np.random.default_rng(1).exponential(1, 300) ** 4
    water = Water.of(energies)
    for share in (1e-6, 0.01, 0.3, 0.9, 0.999):
        level = water.level(share * water.total)
        assert np.minimum(energies, level).sum() == pytest.approx(share * water.total)


def test_more_divergence_never_takes_more_bits_and_enough_takes_none():
    water = Water.of(np.random.default_rng(2).exponential(1, 300) ** 4)
    bits = [water.bits(water.total * share) for share in np.geomspace(1e-6, 1, 60)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(bits))
    assert bits[0] > 0
    assert water.bits(water.total) == water.bits(2 * water.total) == 0
    assert Water.of([0.0]).bits(1.0) == 0


#: Next to none, so that closed forms hold.
_NONE = calibrate.Damping(1e-9, 1e-9)


def _white(n_out=32, n_in=64, scales=None):
    """A layer with whitened inputs of the given scales, plain numbers as outputs, and an update of variance one."""
    torch.manual_seed(0)
    module = nn.Linear(n_in, n_out, bias=False)
    x, _ = torch.linalg.qr(torch.randn(4096, n_in))
    x = x * math.sqrt(len(x)) * (torch.ones(n_in) if scales is None else scales)
    base = {"weight": module.weight.detach() + torch.randn(n_out, n_in)}
    return module, list(x.split(512)), base


def test_a_white_layer():
    module, batches, base = _white()
    limit = calibrate.rate_limit(module, batches, base, output="values", damping=_NONE, variances="white")
    update = (module.weight.detach() - base["weight"]).square().mean()
    # Half the squared distance of the outputs, with a covariance of gradients that is close to the identity.
    assert limit.divergence == pytest.approx(float(32 * 64 * update / 2), rel=0.02)
    for rate in (1, 2, 4):
        kl = limit.divergence / 4**rate
        assert limit.bits_per_value(kl) == pytest.approx(rate, abs=0.02)
    assert limit.bits(limit.divergence) == limit.bits(10 * limit.divergence) == 0


def test_a_layer_whose_inputs_differ_in_scale():
    scales = torch.logspace(-1, 1, 64)
    module, batches, base = _white(scales=scales)
    limit = calibrate.rate_limit(module, batches, base, output="values", damping=_NONE, variances="white")
    update = float((module.weight.detach() - base["weight"]).square().mean())
    expected = Water.of(np.repeat(scales.numpy() ** 2 * update / 2, 32))
    for share in (1e-4, 1e-2, 0.3):
        assert limit.bits(share * limit.divergence) == pytest.approx(expected.bits(share * expected.total), rel=0.03)


def test_directions_that_did_not_move_are_free():
    module, batches, base = _white()
    moved = module.weight.detach().clone()
    moved[:, :16] = base["weight"][:, :16]
    module.weight.data.copy_(moved)
    white, measured = (
        calibrate.rate_limit(module, batches, base, output="values", damping=_NONE, variances=v)
        for v in ("white", "directions")
    )
    # The eigenvectors of a white moment are any: rotated, the update's variances are all alike again.
    assert measured.bits(1.0) < 1.01 * white.bits(1.0)
    scaled = [x * torch.linspace(0.5, 2, 64) for x in batches]
    white, measured = (
        calibrate.rate_limit(module, scaled, base, output="values", damping=_NONE, variances=v)
        for v in ("white", "directions")
    )
    assert measured.bits(1.0) < 0.8 * white.bits(1.0)


def test_samples_leave_the_divergence_that_was_asked_for():
    module, batches, base = _white(scales=torch.logspace(-1, 1, 64))
    limit = calibrate.rate_limit(module, batches, base, output="values", damping=_NONE)
    predictor = Predictor(module, batches, None, "values")
    originals = [predictor.predictions(batch) for batch in batches]
    for share in (0.003, 0.1):
        kl = share * limit.divergence
        tensors = {name: torch.from_numpy(each) for name, each in limit.sample(kl).items()}
        assert predictor.mean_divergence(originals, batches, tensors) == pytest.approx(kl, rel=0.15)


def test_a_sample_at_no_rate_is_the_base():
    module, batches, base = _white()
    limit = calibrate.rate_limit(module, batches, base, output="values", damping=_NONE)
    assert np.allclose(limit.sample(2 * limit.divergence)["weight"], base["weight"].numpy(), atol=1e-6)
    assert np.array_equal(limit.sample(1.0, seed=3)["weight"], limit.sample(1.0, seed=3)["weight"])


@pytest.mark.parametrize("name", ["conv2d", "grouped", "depthwise"])
def test_convolutions(name):
    torch.manual_seed(0)
    module, shape = convolutions()[name]
    limit = calibrate.rate_limit(module, images(shape))
    assert 0 < limit.bits(limit.divergence / 10) < limit.bits(limit.divergence / 100)
    sample = limit.sample(limit.divergence / 100)
    assert {n: a.shape for n, a in sample.items()} == {
        n: tuple(a.shape) for n, a in module.state_dict().items() if a.is_floating_point()
    }


@pytest.mark.parametrize("make", [Attention, Tied])
def test_embeddings_attention_and_tied_weights(make):
    torch.manual_seed(0)
    module = make()
    limit = calibrate.rate_limit(module, words())
    assert not limit.plain
    assert limit.n_values == sum(p.numel() for p in module.parameters())
    assert limit.bits(limit.divergence / 10) > 0


def test_it_agrees_with_the_moments_written_out():
    torch.manual_seed(1)
    module, batches = nn.Linear(6, 5), [torch.randn(64, 6) for _ in range(4)]
    sensitivity = gather(Predictor(module, batches))
    (weighed,) = sensitivity.pieces.values()
    down, across = (torch.linalg.eigvalsh(m.values[0].double()) for m in (weighed.rows, weighed.columns))
    weight, bias = module.weight.detach().double(), module.bias.detach().double()
    energies = torch.outer(down, across).flatten() * weight.square().mean() / 2
    rest = torch.full((5,), float(sensitivity.curvature["bias"] * bias.square().mean() / 2))
    expected = Water.of(torch.cat([energies, rest]).numpy())
    limit = calibrate.rate_limit(module, batches, damping=_NONE, variances="white")
    assert limit.bits(1e-4) == pytest.approx(expected.bits(1e-4), rel=1e-6)


def test_values_that_are_not_finite_keep_their_bits():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    base = dict(module.state_dict())
    base["0.weight"] = torch.full((4, 4), math.inf)
    limit = calibrate.rate_limit(module, [torch.randn(16, 4)], base)
    assert limit.plain == {"0.weight": "not finite", "1.running_mean": "not used by the batches",
                           "1.running_var": "not used by the batches"}  # fmt: skip
    assert np.array_equal(limit.sample(1e-3)["0.weight"], module.state_dict()["0.weight"].numpy())


@pytest.mark.parametrize("kl", [0, -1.0, math.inf, math.nan, "1"])
def test_a_divergence_is_positive(kl):
    limit = calibrate.rate_limit(nn.Linear(4, 3), [torch.randn(16, 4)])
    with pytest.raises(UsageError, match="positive"):
        limit.bits(kl)


def test_unknown_variances():
    with pytest.raises(UsageError, match="variances"):
        calibrate.rate_limit(nn.Linear(4, 3), [torch.randn(16, 4)], variances="all")


def test_damping_adds_what_the_batches_do_not_show():
    """One input: the moment has one direction, and all others look free."""
    torch.manual_seed(0)
    module, batches = nn.Linear(64, 32), [torch.randn(1, 64).repeat(16, 1)]
    undamped, damped = (calibrate.rate_limit(module, batches, damping=d) for d in (_NONE, None))
    kl = undamped.divergence / 100
    assert damped.bits(kl) > 2 * undamped.bits(kl)
