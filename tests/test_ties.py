"""Equal tensors are stored once; only what shared memory in the source shares it again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nearzip as nz
from nearzip.bounds import Statistics, violations
from nearzip.coding import Coding, Codings

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::nearzip.errors.UpdateLostWarning")


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


BOUNDS = (
    nz.Lossless(),
    nz.Absolute(1e-2),
    nz.Absolute(1e-3),
    nz.Rms(0.01),
    nz.Relative(1e-3),
    nz.PointwiseRelative(1e-2),
)


def segments(archive):
    return sum(len(segment.tensors) for segment in archive.report.index.segments)


@given(st.lists(st.sampled_from(BOUNDS), min_size=2, max_size=5), st.booleans(), st.integers(0, 99))
def test_equal_tensors_keep_bounds_of_their_own(bounds, with_base, seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(30, 40)).astype(np.float32)
    tensors = {f"t{i}": w.copy() for i in range(len(bounds))}
    base = {"t0": w + np.float32(1e-3), "t1": w} if with_base else None
    archive = nz.compress(tensors, base=base, bound=dict(zip(tensors, bounds, strict=True)))
    restored = nz.decompress(archive.to_bytes(), base=base)
    for (name, values), bound in zip(restored.items(), bounds, strict=True):
        assert not violations(w.reshape(-1), values.reshape(-1), bound.tolerance(Statistics.of(w))).size, name
    if nz.Lossless() in bounds:
        assert segments(archive) == 1


def test_an_exact_copy_serves_a_rounded_tensor_too():
    w = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
    archive = nz.compress({"w": w, "ema": w.copy(), "other": w.copy()}, bound={"*": "abs:1e-2", "ema": "lossless"})
    assert archive.nbytes < nz.compress({"w": w}).nbytes + 200
    assert dict(archive.report.index.aliases) == {"w": "ema", "other": "ema"}
    assert all(values.tobytes() == w.tobytes() for values in nz.decompress(archive).values())


def test_equal_integers_share_whatever_their_bound():
    n = np.arange(1000)
    archive = nz.compress({"a": n, "b": n.copy()}, bound={"a": "abs:1e-2", "*": "lossless"})
    assert dict(archive.report.index.aliases) == {"b": "a"}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("deepsz-nearzip", {"keep": {"a": 0.1, "*": 1.0}}),
        ("deep-compression", {"keep": {"a": 0.1, "*": 1.0}, "bits": 8}),
        ("weightless", {"keep": 0.1, "layers": "a"}),
        ("weightless", {"keep": 0.1}),
    ],
)
def test_pruned_by_name_equal_tensors_part(method, options):
    w = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    alone = {name: nz.compress({"a": w, "b": w + 1}, method=method, options=options).restored["a"] for name in "a"}
    restored = nz.compress({"a": w, "b": w.copy()}, method=method, options=options).restored
    assert np.array_equal(restored["a"], alone["a"])
    assert np.count_nonzero(restored["a"]) < 0.2 * w.size
    assert np.count_nonzero(restored["b"]) > 0.9 * w.size


@pytest.mark.parametrize("bounds", [("abs:1e-3", "lossless"), ("abs:1e-3", "pwrel:1e-2")])
def test_tied_weights_of_two_bounds_keep_both(tmp_path, bounds):
    shared = torch.randn(200, 100)
    content = {"embed.weight": shared, "head.weight": shared}
    loaded = round_trip(content, tmp_path, bound=dict(zip(content, bounds, strict=True)))
    for name, bound in zip(content, bounds, strict=True):
        tolerance = nz.bounds.parse_bound(bound).tolerance(Statistics.of(shared.numpy()))
        assert not violations(shared.numpy().reshape(-1), loaded[name].numpy().reshape(-1), tolerance).size
    tied = loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()
    assert tied == (bounds[1] == "lossless")


def test_a_store_keeps_the_promise_of_every_equal_tensor(tmp_path):
    w = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)

    class Plan:
        def codings_for(self, names):
            return Codings(Coding.of("nearzip", "abs:1e-2"), {"ema": Coding.of("nearzip", "lossless")})

    store = nz.Store(tmp_path / "s", create=True)
    for i in range(3):
        number = store.commit({"w": w + np.float32(i), "ema": w + np.float32(i)}, plan=Plan())
        assert store.checkout(number)["ema"].tobytes() == (w + np.float32(i)).tobytes()
