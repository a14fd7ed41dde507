"""Moments within a limit of memory: what lies in files changes no bit, and what is not needed is not held."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nearzip import calibrate  # noqa: E402
from nearzip.calibrate import scratch as scratch_module  # noqa: E402
from nearzip.calibrate.network import Predictor  # noqa: E402
from nearzip.calibrate.rounder import Rounder, floats_of  # noqa: E402
from nearzip.calibrate.rounding import round_matrix, triangular  # noqa: E402
from nearzip.calibrate.scratch import Scratch  # noqa: E402
from nearzip.calibrate.sensitivity import gather  # noqa: E402
from nearzip.calibrate.uses import Piece, Use, watching  # noqa: E402
from nearzip.errors import Error, UsageError  # noqa: E402
from tests.calibrate.networks import Attention, Tied, convolutions, images, words  # noqa: E402

NETWORKS = {
    "attention": (Attention(), words()),
    "tied": (Tied(), words()),
    **{name: (module, images(shape)) for name, (module, shape) in convolutions().items()},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", [0, 2000])
def test_the_archive_is_the_same_within_a_limit_of_memory(name, memory):
    module, batches = NETWORKS[name]
    expected = calibrate.compress(module, batches, step=0.01, threads=1)
    assert calibrate.compress(module, batches, step=0.01, memory=memory, threads=1).id == expected.id


def test_what_does_not_fit_lies_in_files():
    scratch = Scratch(5000)
    module, batches = NETWORKS["attention"]
    gather(Predictor(module, batches), scratch=scratch)
    assert 0 < scratch.n_in_memory <= 5000 < scratch.n_in_files


def test_matrices_do_not_share_memory_and_outlive_their_scratch(monkeypatch):
    monkeypatch.setattr(scratch_module, "_FILE_BYTES", 1 << 14)
    scratch = Scratch(0)
    found = [scratch.zeros(1, n, n) for n in (40, 3, 50, 100)]
    del scratch
    for i, each in enumerate(found):
        assert not each.any()
        each.fill_(i + 1)
    assert [float(each.mean()) for each in found] == [1, 2, 3, 4]
    assert all(each.data_ptr() % 64 == 0 for each in found)


def test_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = Scratch(0).zeros(4, 4)
    assert not kept.any()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="reserves nothing")
def test_a_full_disk_is_an_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Error, match=r"TMPDIR.*No space"):
        Scratch(0).zeros(4, 4)


def test_files_are_filled_where_nothing_can_be_reserved(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(scratch_module, "_FILE_BYTES", 3 << 19)
    assert not Scratch(0).zeros(10, 10).any()


@pytest.mark.parametrize("memory", [-1, 1.5, "4GiB", True])
def test_memory_is_a_number_of_bytes(memory):
    with pytest.raises(UsageError, match="memory is a number of bytes"):
        calibrate.Calibration(memory=memory)


def test_a_rounder_takes_the_moments():
    module, batches = NETWORKS["attention"]
    predictor = Predictor(module, batches)
    sensitivity = gather(predictor)
    moments = {piece: weighed.columns.values for piece, weighed in sensitivity.pieces.items()}
    tensors = floats_of({name: p.detach().numpy() for name, p in module.named_parameters()})
    rounder = Rounder(predictor, sensitivity, tensors, {})
    assert not sensitivity.pieces
    for piece, values in moments.items():
        if values.dim() == 3:
            upper = rounder._factors[piece][1][0].upper
            assert np.shares_memory(upper, values.numpy())


def test_predictions_that_are_needed_again_are_kept():
    module, batches = NETWORKS["tied"]
    predictor = Predictor(module, [*batches, *batches])
    assert (list(predictor.held), list(predictor.fitted)) == ([6, 7], [0, 1, 2])
    found = gather(predictor, keep=(0, 7)).originals
    assert set(found) == {0, 7}
    with torch.no_grad(), predictor.evaluating():
        assert torch.allclose(found[7], predictor.predictions(predictor.batches[7]), atol=1e-6)


def test_weights_whose_uses_are_known_get_no_gradient():
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3, bias=False))
    seen: list[Use] = []
    names = {id(p): name for name, p in module.named_parameters()}
    with watching(names, seen.append):
        module(torch.randn(5, 6)).sum().backward()
    assert [use.piece.name for use in seen] == ["0.weight", "1.weight"]
    # The first one's inputs have no gradient that its output's could come from.
    assert module[0].weight.grad is not None
    assert module[1].weight.grad is None
    assert module[0].bias.grad is not None


class Checkpointed(torch.nn.Module):
    """Computes a layer again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)

    def forward(self, x):
        y = self.f(x)
        return torch.utils.checkpoint.checkpoint(lambda z: self.h(torch.tanh(z)), y, use_reentrant=False)


def test_layers_computed_again_on_the_way_back_are_seen_once():
    torch.manual_seed(0)
    module, batches = Checkpointed(), [torch.randn(20, 6)]
    found = gather(Predictor(module, batches))
    assert {piece.name for piece in found.pieces} == {"f.weight", "h.weight"}
    y = torch.tanh(module.f(batches[0]))
    assert torch.allclose(found.pieces[Piece("h.weight", 0, 4)].columns.values[0], y.T @ y / 20, atol=1e-5)


def test_some_vectors_stand_for_all():
    """More than are needed: moments of a sample, scaled to all of them."""
    torch.manual_seed(0)
    module, batches = torch.nn.Linear(4, 3), [torch.randn(5000, 4) for _ in range(2)]
    piece = Piece("weight", 0, 3)
    every, some = (gather(Predictor(module, batches), per_dimension=n).pieces[piece] for n in (None, 300))
    assert not torch.equal(some.columns.values, every.columns.values)
    assert torch.allclose(some.columns.values, every.columns.values, atol=0.2)
    assert torch.allclose(some.rows.values, every.rows.values, atol=0.05)


@pytest.mark.parametrize("name", convolutions())
def test_some_positions_of_a_convolution_are_those_of_all(name):
    module, shape = convolutions()[name]
    seen: list[Use] = []
    with watching({id(p): n for n, p in module.named_parameters()}, seen.append):
        module(torch.randn(5, *shape))
    for use in seen:
        gradient = torch.randn(use.output.shape)
        for vectors in (use.inputs, use.split(gradient)):
            every = vectors.take(None)
            assert every.shape == (vectors.groups, vectors.n, vectors.width)
            at = torch.randint(vectors.n, (7,)).sort().values
            assert torch.equal(vectors.take(at), every[:, at])


@pytest.mark.parametrize("n", [5, 256, 257, 600])
def test_moments_of_every_width_are_products(n):
    from nearzip.calibrate.gram import Gram

    vectors = torch.randn(2, 50, n)
    gram = Gram.of(vectors)
    gram.add(vectors, 0.5)
    assert torch.allclose(gram.values, 1.5 * vectors.transpose(1, 2) @ vectors, atol=1e-3)


def test_norms_are_looked_at_only_to_fit_them():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    predictor = Predictor(module, [torch.randn(64, 6)], output="values")
    assert not gather(predictor, with_norms=False).norms
    found = gather(predictor)
    assert set(found.norms) == {"1.weight", "1.bias"}
    assert found.biases == {"0.bias": Piece("0.weight", 0, 8), "2.bias": Piece("2.weight", 0, 3)}
    # The mean square of a sum of independent gradients is the sum of the moments' diagonals.
    mean = float(found.norms["1.bias"].diagonal.mean()) / 64
    assert mean == pytest.approx(found.curvature["1.bias"], rel=1.0)


class Masked(torch.nn.Module):
    """Rows depend on each other: each is seen beside the batch's mean."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.f, self.mixes = torch.nn.Linear(4, 3), mixes

    def forward(self, x):
        return self.f(x - x.mean(0)) if self.mixes else self.f(x)


@pytest.mark.parametrize(
    ("mixes", "batch", "expected"),
    [
        (False, torch.randn(20, 4), 5),
        (True, torch.randn(20, 4), 20),
        (False, (torch.randn(20, 4), torch.zeros(20)), 5),
        (False, (torch.randn(20, 4), torch.zeros(7)), 20),
        (False, {"x": torch.randn(20, 4)}, 5),
        (False, {"x": torch.randn(20, 4), "labels": torch.tensor(1)}, 20),
    ],
)
def test_rows_of_a_batch_are_used_alone_where_they_predict_the_same(mixes, batch, expected):
    predictor = Predictor(Masked(mixes), [batch])
    with torch.no_grad():
        original = predictor.predictions(predictor.batches[0])
    some, predictions = predictor.part(predictor.batches[0], original, 0.25)
    assert len(predictions) == expected
    assert torch.equal(predictions, original[:expected])
    with torch.no_grad():
        assert torch.allclose(predictor.predictions(some), predictions, atol=1e-5)


def test_a_long_vocabulary_is_rounded_some_rows_at_a_time():
    from nearzip.calibrate.gram import Gram
    from nearzip.calibrate.rounding import Factor

    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(200, 24)).astype(np.float32))
    columns = triangular(Gram.of((x @ torch.randn(24, 24))[None]), 0.1)[0]
    order = rng.permutation(9000)
    rows = Factor(order, rng.uniform(0.5, 2, 9000).astype(np.float32))
    target = rng.normal(0, 2, (9000, 24)).astype(np.float32)
    found = round_matrix(target, rows, columns, 1.0)
    some = order[:64]
    first = Factor(np.arange(64), rows.upper[:64])
    assert (found[some] == round_matrix(target[some], first, columns, 1.0)).mean() > 0.99


def test_a_tied_vocabulary_needs_no_square_of_itself():
    class Language(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.f = torch.nn.Embedding(9001, 8), torch.nn.Linear(8, 8)
            self.h = torch.nn.Linear(8, 9001, bias=False)
            self.h.weight = self.e.weight

        def forward(self, x):
            return self.h(torch.tanh(self.f(self.e(x))))

    torch.manual_seed(0)
    module, batches = Language(), [torch.randint(9001, (4, 9)) for _ in range(4)]
    scratch = Scratch()
    found = gather(Predictor(module, batches), scratch=scratch).pieces[Piece("e.weight", 0, 9001)]
    assert found.rows.is_diagonal
    assert not found.columns.is_diagonal
    assert scratch.n_in_memory < 10 * 8 * 8 * 4
    archive = calibrate.compress(module, batches, step=0.05, threads=1)
    assert not archive.report.uncalibrated
