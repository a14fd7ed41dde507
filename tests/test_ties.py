"""Equal tensors are stored once; only what shared memory in the source shares it again."""

from __future__ import annotations

import numpy as np
import pytest

import nearzip as nz

torch = pytest.importorskip("torch")


def round_trip(content, folder, **how):
    torch.save(content, folder / "in.pt")
    nz.compress_file(folder / "in.pt", folder / "a.nz", **how)
    nz.decompress_file(folder / "a.nz", folder / "out.pt")
    return torch.load(folder / "out.pt", weights_only=True)


def test_equal_tensors_take_no_space():
    noise = np.random.default_rng(0).normal(size=100_000)
    one = nz.compress({"a": noise})
    two = nz.compress({"a": noise, "b": noise.copy()})
    assert two.nbytes < one.nbytes + 200
    assert nz.decompress(two)["b"].tobytes() == noise.tobytes()


def test_equal_tensors_do_not_share_memory():
    archive = nz.compress({"a": np.zeros(10), "b": np.zeros(10)})
    for tensors in (archive.restored, nz.decompress(archive)):
        tensors["a"][0] = 1
        assert tensors["b"][0] == 0
    with nz.open(archive.to_bytes()) as reader:
        reader["a"][0] = 1
        assert reader["b"][0] == 0


@pytest.mark.parametrize("bound", [None, nz.Absolute(0.01)])
def test_tied_weights_stay_tied(tmp_path, bound):
    shared = torch.randn(20, 10)
    content = {"embed.weight": shared, "other": torch.zeros(3), "head.weight": shared, "third": torch.zeros(3)}
    loaded = round_trip(content, tmp_path, bound=bound)
    assert list(loaded) == list(content)
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()
    assert loaded["other"].data_ptr() != loaded["third"].data_ptr()
    assert torch.allclose(loaded["head.weight"], shared, atol=0.011)


def test_views_of_one_memory_are_not_tied(tmp_path):
    memory = torch.arange(10.0)
    loaded = round_trip({"whole": memory, "part": memory[:5], "strided": memory[::2]}, tmp_path)
    loaded["whole"][:] = 7
    assert loaded["part"].tolist() == [0, 1, 2, 3, 4]
    assert loaded["strided"].tolist() == [0, 2, 4, 6, 8]


def test_an_optimizer_counts_on_from_where_it_was(tmp_path):
    """Every parameter has a counter of its own; they are equal, and stay apart."""
    parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]

    def step(optimizer):
        for parameter in parameters:
            parameter.grad = torch.ones(4)
        optimizer.step()

    exact = torch.optim.Adam(parameters)
    step(exact)
    restored = torch.optim.Adam(parameters)
    restored.load_state_dict(round_trip(exact.state_dict(), tmp_path))
    step(restored)
    assert [restored.state[parameter]["step"].item() for parameter in parameters] == [2, 2, 2]
