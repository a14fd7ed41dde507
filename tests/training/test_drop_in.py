"""safetensors' interface over archives: the same calls give the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import nearzip as nz
from nearzip import errors
from nearzip.torch import load_file, safe_open, save_file


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(30, 20), "b": torch.randn(7).to(torch.bfloat16), "n": torch.arange(5)}


def test_the_same_calls_as_safetensors(tensors, tmp_path):
    ours, theirs = tmp_path / "a.nz", tmp_path / "a.safetensors"
    save_file(tensors, ours, {"made": "here"})
    safetensors.torch.save_file(tensors, theirs, {"made": "here"})
    got, expected = load_file(ours), safetensors.torch.load_file(theirs)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) and got[name].dtype == expected[name].dtype for name in got)
    with safe_open(ours, framework="pt", device="cpu") as f, safetensors.safe_open(theirs, framework="pt") as g:
        assert set(f.keys()) == set(g.keys())
        assert f.metadata() == g.metadata()
        for name in g.keys():  # noqa: SIM118 - not a mapping
            assert torch.equal(f.get_tensor(name), g.get_tensor(name))
        assert torch.equal(f.get_slice("a.weight")[3:5, 1], g.get_slice("a.weight")[3:5, 1])
        assert f.get_slice("a.weight").get_shape() == g.get_slice("a.weight").get_shape()
    with safe_open(ours, framework="np") as f:
        assert isinstance(f.get_tensor("a.weight"), np.ndarray)
        assert f.get_slice("a.weight")[2:3].shape == (1, 20)


def test_updates_within_a_bound(tensors, tmp_path):
    new = {name: t + 0.001 if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(new, tmp_path / "b.nz", base=tensors, bound=nz.Absolute(1e-3))
    got = load_file(tmp_path / "b.nz", base=tensors)
    assert (got["a.weight"] - new["a.weight"]).abs().max() <= 1e-3
    got["a.weight"].add_(1)  # not read-only


def test_what_safetensors_refuses(tensors, tmp_path):
    shared = torch.ones(4, 4)
    with pytest.raises(errors.UsageError, match="'x' and 'y' share memory"):
        save_file({"x": shared, "y": shared[:2]}, tmp_path / "c.nz")
    with pytest.raises(errors.UsageError, match=r"'x' is a list, not a torch\.Tensor"):
        save_file({"x": [1.0]}, tmp_path / "c.nz")
    with pytest.raises(errors.UsageError, match="framework is"):
        safe_open(tmp_path / "c.nz", framework="tf")
    assert not list(tmp_path.iterdir())
