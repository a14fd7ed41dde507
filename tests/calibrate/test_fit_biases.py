"""Biases and norms fitted to rounded matrices."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from nearzip.calibrate.fit_biases import _EVALUATIONS, fit_biases  # noqa: E402
from nearzip.calibrate.network import Predictor  # noqa: E402
from nearzip.calibrate.sensitivity import gather  # noqa: E402


class Counting(Predictor):
    """Counts its evaluations of other tensors."""

    n = 0

    def loss(self, *arguments):
        self.n += 1
        return super().loss(*arguments)


class Scaled(torch.nn.Module):
    """Biases whose curvatures lie a million times apart."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(6, 12))
        self.fine, self.coarse = torch.nn.Parameter(torch.zeros(6)), torch.nn.Parameter(torch.zeros(6))

    def forward(self, x):
        x = x @ self.matrix.T
        return torch.stack([x[:, :3].sum(1) + 30 * self.fine.sum(), x[:, 3:].sum(1) + 0.03 * self.coarse.sum()], 1)


def case(offset: dict[str, float]):
    torch.manual_seed(0)
    network = Scaled()
    predictor = Counting(network, [0.1 * torch.randn(64, 12) for _ in range(4)], output="values")
    restored = {name: value.detach().clone() for name, value in network.named_parameters()}
    for name, by in offset.items():
        restored[name] += by
    sensitivity = gather(predictor)
    with torch.no_grad():
        originals = [predictor.predictions(batch) for batch in predictor.batches]
    curvature = {name: sensitivity.curvature[name] for name in ("fine", "coarse")}
    return predictor, restored, originals, curvature


def test_biases_of_very_different_curvature_are_fitted_together():
    predictor, restored, originals, curvature = case({"fine": 0.01, "coarse": 10.0})
    assert curvature["fine"] > 1e5 * curvature["coarse"] > 0
    *_, found = fit_biases(predictor, originals, restored, curvature, lambda name, value: value)
    before = predictor.mean_divergence(originals, predictor.batches, restored)
    after = predictor.mean_divergence(originals, predictor.batches, {**restored, **found})
    assert before > 1
    assert after < 1e-4 * before


def test_whoever_stops_pays_for_the_first_evaluations_only():
    predictor, restored, originals, curvature = case({"fine": 0.01})
    assert next(fit_biases(predictor, originals[:2], restored, curvature, lambda name, value: value))
    # The line search may go one beyond.
    assert 2 * 2 <= predictor.n <= 2 * (_EVALUATIONS[0] + 1)


def test_values_stay_within_what_is_allowed():
    predictor, restored, originals, curvature = case({"fine": 0.01, "coarse": 10.0})
    near = lambda name, value: restored[name] + (value - restored[name]).clamp(-1e-3, 1e-3)  # noqa: E731
    for found in fit_biases(predictor, originals, restored, curvature, near):
        assert all(float((found[name] - restored[name]).abs().max()) <= 1e-3 + 1e-6 for name in found)
        assert any(float((found[name] - restored[name]).abs().max()) > 0 for name in found)


class Rare(torch.nn.Module):
    """A bias that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = torch.nn.Parameter(torch.randn(6, 12)), torch.nn.Parameter(torch.zeros(6))

    def forward(self, x):
        found = x @ self.matrix.T
        return found + self.bias if x.mean() > 1 else found


@pytest.mark.parametrize("n_used", [0, 1, 2])
def test_batches_may_use_none_of_the_tensors(n_used):
    torch.manual_seed(0)
    batches = [torch.randn(16, 12) + (2 if i < n_used else 0) for i in range(3)]
    network = Rare()
    predictor = Predictor(network, batches, output="values")
    with torch.no_grad():
        originals = [predictor.predictions(batch) for batch in batches]
    restored = {"matrix": network.matrix.detach().clone(), "bias": torch.full((6,), 0.3)}
    *_, found = fit_biases(predictor, originals, restored, {"bias": 1.0}, lambda name, value: value)
    assert torch.allclose(found["bias"], torch.full((6,), 0.0 if n_used else 0.3), atol=0.01)


def test_a_tensor_that_hardly_matters_does_not_spoil_the_others():
    predictor, restored, originals, curvature = case({"fine": 0.01})
    curvature["coarse"] = 1e-100
    *_, found = fit_biases(predictor, originals, restored, curvature, lambda name, value: value)
    assert set(found) == {"fine", "coarse"}
    after = predictor.mean_divergence(originals, predictor.batches, {**restored, **found})
    assert after < 0.1 * predictor.mean_divergence(originals, predictor.batches, restored)
