"""Second moments of inputs and gradients, against what the layers really see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nearzip.calibrate.network import Predictor
from nearzip.calibrate.sensitivity import gather
from nearzip.calibrate.unfolding import patches
from nearzip.calibrate.uses import Piece
from nearzip.errors import UsageError
from nearzip.network.calls import call, output_of
from tests.calibrate.networks import Attention, Tied, Turned, convolutions, images, words


def gathered(module, batches, output="logits"):
    return gather(Predictor(module, batches, None, output))


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation"),
    [
        ((2, 3, 11), (3,), 2, 1, 2),
        ((2, 3, 9, 8), (3, 2), (2, 1), (1, 0), (1, 2)),
        ((2, 3, 9, 8), (3, 1), 1, "same", (2, 1)),
        ((1, 2, 5, 4, 6), (2, 3, 2), 1, "valid", 1),
    ],
)
def test_patches_times_kernels_are_convolutions(shape, kernel, stride, padding, dilation):
    x, w = torch.randn(shape), torch.randn(4, shape[1], *kernel)
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    expected = convolution(x, w, None, stride, padding, dilation).movedim(1, -1).flatten(0, -2)
    found = patches(x, kernel, stride, padding, dilation) @ w.flatten(1).T
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_linear_layers_factors():
    torch.manual_seed(0)
    module, batches = nn.Linear(5, 3), [torch.randn(40, 5), torch.randn(24, 5)]
    found = gathered(module, batches)
    weighed = found.pieces[Piece("weight", 0, 3)]
    x = torch.cat(batches)
    assert torch.allclose(weighed.columns.values[0], x.T @ x / 64, atol=1e-4)
    # The expectation over drawn answers is the covariance of a one-hot draw.
    p = module(x).softmax(-1)
    fisher = torch.diag(p.mean(0)) - p.T @ p / 64
    assert torch.allclose(weighed.rows.values[0], fisher, atol=0.15)
    assert found.n_predictions == 64
    assert found.curvature["bias"] > 0


def test_gradients_of_plain_numbers_are_those_of_a_gaussian():
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    weighed = gathered(module, [torch.randn(4000, 5)], "values").pieces[Piece("weight", 0, 3)]
    assert torch.allclose(weighed.rows.values[0], torch.eye(3), atol=0.1)


@pytest.mark.parametrize("name", convolutions())
def test_convolutions_are_seen_group_by_group(name):
    torch.manual_seed(0)
    module, shape = convolutions()[name]
    found = gathered(module, images(shape))
    weights = {n: p for n, p in module.named_parameters() if p.dim() > 1}
    assert {piece.name for piece in found.pieces} == set(weights)
    for piece, weighed in found.pieces.items():
        weight = weights[piece.name]
        groups = {"grouped": 2, "depthwise": 6}.get(name, 1) if piece.name == "layers.0.weight" else 1
        assert piece.groups == groups
        matrices = piece.matrices(weight.detach())
        assert matrices.shape == (groups, weight.shape[0] // groups, weight[0].numel())
        assert weighed.rows.diagonal.shape == matrices.shape[:2]
        assert weighed.columns.diagonal.shape == (groups, matrices.shape[2])
        back = torch.zeros_like(weight)
        piece.put(matrices, back)
        assert torch.equal(back, weight)


def test_grouped_inputs_are_those_of_the_group():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(50, 4, 2, 2)
    columns = gathered(module, [x]).pieces[Piece("0.weight", 0, 8, 2)].columns
    rows = x.movedim(1, -1).reshape(-1, 2, 2)
    for group in range(2):
        expected = rows[:, group].T @ rows[:, group] / 50
        assert torch.allclose(columns.values[group], expected, atol=1e-3)


def test_attention_is_seen_inside():
    found = gathered(Attention(), words())
    assert {piece.name for piece in found.pieces} == {
        "e.weight", "attention.in_proj_weight", "attention.out_proj.weight", "h.weight",
    }  # fmt: skip
    crossed = gathered(Attention(cross=True), words())
    parts = sorted((p.start, p.stop) for p in crossed.pieces if p.name == "attention.in_proj_weight")
    assert parts == [(0, 16), (16, 48)]


def test_a_tied_weight_is_one_piece_with_both_uses():
    torch.manual_seed(0)
    module = Tied()
    found = gathered(module, words())
    weighed = found.pieces[Piece("e.weight", 0, 12)]
    assert not weighed.rows.is_diagonal
    assert {p.name for p in found.pieces} == {"e.weight", "f.weight"}


def test_turned_weights_and_layers_that_are_not_reached():
    torch.manual_seed(0)
    found = gathered(Turned(), [torch.randn(30, 8)])
    assert {(p.name, p.turned) for p in found.pieces} == {("w", True), ("h.weight", False)}
    assert found.curvature["unused.weight"] == 0
    assert found.curvature["product"] > 0


def test_the_module_is_left_as_it_was():
    module, shape = convolutions()["depthwise"]
    module.train()
    module.h.weight.requires_grad_(False)
    module.h.bias.grad = torch.ones(5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    linear = functional.linear
    gathered(module, images(shape))
    assert functional.linear is linear
    assert module.training
    assert module.layers[1].training
    assert not module.h.weight.requires_grad
    assert module.h.weight.grad is None
    assert torch.equal(module.h.bias.grad, torch.ones(5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_same_batches_give_the_same_factors():
    module, batches = Attention(), words()
    one, other = gathered(module, batches), gathered(module, batches)
    for piece, weighed in one.pieces.items():
        assert torch.equal(weighed.rows.values, other.pieces[piece].rows.values)


class _Answer:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("shape", ["tensor", "pair", "mapping", "object", "tuple", "dict"])
def test_usual_ways_to_call_a_network(shape):
    class Wrapped(nn.Linear):
        def forward(self, input):
            y = super().forward(input)
            return {"object": _Answer(y), "tuple": (y, None), "dict": {"logits": y}}.get(shape, y)

    module, x = Wrapped(3, 2), torch.ones(4, 3)
    batch = {"pair": (x, torch.zeros(4)), "mapping": {"input": x}}.get(shape, x)
    assert output_of(call(module, batch), "forward").shape == (4, 2)


def test_what_cannot_be_calibrated_with_is_refused():
    module = nn.Linear(3, 2)
    with pytest.raises(UsageError, match="at least one batch"):
        gathered(module, [])
    with pytest.raises(UsageError, match="not finite"):
        gathered(module, [torch.full((2, 3), float("nan"))])
    with pytest.raises(UsageError, match="floating-point tensor"):
        gather(Predictor(module, [torch.ones(2, 3)], lambda m, b: m(b).argmax(-1), "logits"))
    with pytest.raises(UsageError, match="forward="):
        output_of(call(nn.Module.__new__(_Silent), torch.ones(2)), "forward")
    with pytest.raises(UsageError, match="'logits' or 'values'"):
        Predictor(module, [torch.ones(2, 3)], None, "both")


class _Silent(nn.Module):
    def __call__(self, batch):
        return None


def test_sums_over_batches_do_not_depend_on_how_they_are_cut():
    torch.manual_seed(1)
    module = nn.Linear(4, 3)
    x = torch.randn(60, 4)
    one = gathered(module, [x]).pieces[Piece("weight", 0, 3)]
    other = gathered(module, list(x.split(20))).pieces[Piece("weight", 0, 3)]
    assert np.allclose(one.columns.values, other.columns.values, atol=1e-4)
