"""The lattice E8: nearest points, streams, files, what is refused."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip.errors import CorruptError, UsageError
from nearzip.recipes.nearzip import Nearzip
from nearzip.stages import (
    Coded,
    Context,
    ContextDelta,
    E8Step,
    Grid,
    Pipeline,
    Rans,
    StepThenBits,
    SubtractBase,
    UniformStep,
)
from nearzip.stages.e8 import UnbiasedE8Step, _root_numbers, _roots, e8_gain, nearest_points
from nearzip.store.steps import steps_of
from nearzip.testing.contract import check_recipe

STEP = 0.004
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
#: Of values in steps: all groups as coordinates, zeros apart, and the shortest points as numbers.
LIMITS = {0: 4.0, 1: 0.5, 2: 0.25}


def versions(dtype=np.float32, wide: float = 1 / 6, shape=(160, 100)):
    rng = np.random.default_rng(5)
    old = {"large": rng.normal(0, 0.1, shape), "small": rng.normal(0, 0.1, 70)}
    return (
        {name: values.astype(dtype) for name, values in old.items()},
        {name: (values + rng.laplace(0, STEP * wide, values.shape)).astype(dtype) for name, values in old.items()},
    )


def brute_force(x):
    """The least squared distance from `x`, shape (8,), to a point of E8 within two of it in every coordinate."""
    best = np.inf
    for half in (0.0, 0.5):
        near = np.floor(x - half) + np.arange(-1, 3)[:, None] + half
        squares = (near - x) ** 2
        odd = np.mod(near - half, 2).astype(int)
        least = np.array([0.0, np.inf])  # with an even and an odd sum so far
        for i in range(8):
            own = [squares[odd[:, i] == parity, i].min() for parity in (0, 1)]
            least = np.array([min(least[p ^ q] + own[q] for q in (0, 1)) for p in (0, 1)])
        best = min(best, least[0])
    return best


def test_points_are_the_nearest():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, scale, (300, 8)) for scale in (0.2, 0.5, 2, 100)])
    points = nearest_points(x.reshape(-1), 1.0) / 2
    assert np.isin(np.mod(points, 1), (0, 0.5)).all()
    assert (np.ptp(np.mod(points, 1), axis=1) == 0).all()
    assert not (np.mod(points.sum(axis=1), 2)).any()
    found = ((points - x) ** 2).sum(axis=1)
    assert found == pytest.approx([brute_force(row) for row in x], rel=1e-9)


def test_points_stay_where_they_are():
    rng = np.random.default_rng(1)
    points = nearest_points(rng.normal(0, 3, 8000), 1.0)
    assert np.array_equal(nearest_points(points.reshape(-1) / 2 * 0.25, 0.25), points)


def test_there_are_240_shortest_points():
    roots = _roots()
    assert len({tuple(row) for row in roots.tolist()}) == 240
    assert ((roots**2).sum(axis=1) == 8).all()
    assert np.array_equal(nearest_points(roots.reshape(-1) / 2, 1.0), roots)
    assert np.array_equal(_root_numbers()[(roots + 2) @ 5 ** np.arange(8)], np.arange(240))
    two = [sum(signs) for signs in itertools.product((-1, 1), repeat=2)]
    assert sorted(roots[:4].sum(axis=1) // 2) == sorted(two)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_decoded_are_the_points(limit, dtype, n):
    rng = np.random.default_rng(n)
    x = (rng.laplace(0, LIMITS[limit] * STEP, n)).astype(dtype)
    coded = E8Step(STEP).encode(x)
    assert n < 100 or coded.side == bytes([limit])
    expected = (nearest_points(x, STEP) * 0.5 * STEP).reshape(-1)[:n]
    assert E8Step(STEP).decode(coded, Context.of(x)).tobytes() == expected.tobytes()
    pipeline = Pipeline((E8Step(STEP),))
    decoded = pipeline.decode(pipeline.encode(x, Context.of(x)), Context.of(x))
    assert decoded.dtype == x.dtype
    assert np.abs(decoded.astype(np.float64) - x.astype(np.float64)).max(initial=0) <= 1.01 * STEP


@pytest.mark.parametrize("shapes", [[(40, 24)], [(41, 23)], [(16, 8, 3, 3), (30, 16), (7,)], [(24, 16), (0, 8), (8,)]])
@pytest.mark.parametrize("limit", LIMITS)
def test_grids_change_no_value(limit, shapes):
    rng = np.random.default_rng(3)
    sizes = tuple(int(np.prod(shape)) for shape in shapes)
    x = rng.laplace(0, LIMITS[limit] * STEP, sum(sizes)).astype(np.float32)
    context = Context(x.dtype, sizes, None, tuple(Grid.of(shape) for shape in shapes))
    pipeline = Pipeline((E8Step(STEP),))
    alone = pipeline.decode(pipeline.encode(x, Context.of(x)), Context.of(x))
    assert pipeline.decode(pipeline.encode(x, context), context).tobytes() == alone.tobytes()


@pytest.mark.parametrize(("scale", "larger", "nearer"), [(0.15, 0.8, 1.2), (0.5, 1.04, 0.96), (4.0, 1.02, 0.88)])
def test_fewer_errors_for_about_the_bytes_of_rounding(scale, larger, nearer):
    x = np.random.default_rng(4).laplace(0, scale, 100_000).astype(np.float32)
    sizes, errors = [], []
    for pipeline in (Pipeline((UniformStep(1.0), Rans())), Pipeline((E8Step(1.0),))):
        data = pipeline.encode(x, Context.of(x))
        sizes.append(len(data))
        errors.append(float(((pipeline.decode(data, Context.of(x)) - x) ** 2).mean()))
    assert sizes[1] < larger * sizes[0]
    assert errors[1] < nearer * errors[0]


def test_zeros_cost_nothing():
    x = np.zeros(100_000, np.float32)
    assert len(Pipeline((E8Step(1.0),)).encode(x, Context.of(x))) < 60


@pytest.mark.parametrize("limit", LIMITS)
def test_streams_that_make_no_sense_are_corrupt(limit):
    rng = np.random.default_rng(6)
    x = rng.laplace(0, LIMITS[limit] * STEP, 1001).astype(np.float32)
    stage, context = E8Step(STEP), Context.of(x)
    streams, side = stage.split(x, context)
    stage.join(streams, side, context)
    wrong = [(streams, bad) for bad in (b"", b"\3", b"\0\0", bytes([(limit + 1) % 3]))]
    for i, stream in enumerate(streams):
        bad = [np.append(stream, stream.dtype.type(0)), stream.astype(np.uint16)]
        bad += [stream[:-1]] if stream.size else []
        bad += [np.full_like(stream, 255)] if stream.size and stream.dtype == np.uint8 else []
        wrong += [([*streams[:i], one, *streams[i + 1 :]], side) for one in bad]
    for some, text in wrong:
        with pytest.raises(CorruptError):
            stage.join(some, text, context)
    with pytest.raises(CorruptError):
        stage.join(streams, side, Context(np.dtype(np.int32), (x.size,)))


@pytest.mark.parametrize("limit", [0, 1])
def test_coordinates_of_any_size_are_some_values(limit):
    info = np.iinfo(np.int32)
    for size in (info.min, info.max):
        coordinates, lasts = np.full(8 - limit, size, np.int32), np.full(limit, size, np.int32)
        shells, none = np.full(limit, 1, np.uint8), np.empty(0, np.uint8)
        streams = [shells, none, np.ones(1, np.uint8), coordinates, lasts]
        for step in (1.0, 1e308):
            values = E8Step(step).join(streams, bytes([limit]), Context(np.dtype(np.float32), (8,)))
            assert values.shape == (8,)


@pytest.mark.parametrize("limit", LIMITS)
def test_damaged_bytes_are_corrupt_or_some_values(limit):
    rng = np.random.default_rng(7)
    x = rng.laplace(0, LIMITS[limit] * STEP, 2000).astype(np.float32)
    stage, context = E8Step(STEP), Context(x.dtype, (2000,), None, (Grid.of((50, 40)),))
    coded = stage.encode(x, context)
    for at in range(len(coded.data)):
        data = coded.data[:at] + bytes([coded.data[at] ^ 1 << at % 8]) + coded.data[at + 1 :]
        for some in (data, coded.data[:at]):
            with contextlib.suppress(CorruptError):
                assert stage.decode(Coded(some, coded.side), context).shape == x.shape


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", LIMITS)
def test_files_are_read_back(limit, dtype, with_base):
    old, new = versions(dtype, LIMITS[limit])
    base = old if with_base else None
    options = {"step": STEP, "lattice": True}
    archive = nz.compress(new, base, options=options)
    data = archive.to_bytes()
    assert nz.compress(new, base, options=options, threads=2).to_bytes() == data
    restored = nz.decompress(data, base=base)
    for name, values in new.items():
        assert restored[name].dtype == values.dtype
        assert np.array_equal(restored[name], archive.restored[name])
    assert np.abs(restored["small"].astype(float) - new["small"].astype(float)).max() <= 0.55 * STEP
    stages = {s["id"] for g in archive.report.index.segments for b in g.blocks for s in b.pipeline.to_json()}
    assert stages == {"e8-step", "uniform-step", "rans"} | ({"subtract-base"} if with_base else set())


def test_what_is_not_finite_comes_back_bit_for_bit():
    old, new = versions()
    new["large"][0, :4] = np.nan, np.inf, -np.inf, 3e38
    data = nz.compress(new, old, options={"step": STEP, "lattice": True}).to_bytes()
    restored = nz.decompress(data, base=old)["large"]
    assert restored[0, :3].tobytes() == new["large"][0, :3].tobytes()
    assert np.isfinite(restored[0, 3:]).all()
    assert np.abs(restored[0, 4:] - new["large"][0, 4:]).max() <= 1.01 * STEP


def test_nothing_moved_and_nothing_there():
    old, _ = versions()
    for arrays in (old, {"x": np.zeros((0, 4), np.float32)}, {"x": np.zeros((200, 200), np.float32)}):
        for unbiased in (False, True):
            data = nz.compress(arrays, arrays, options={"step": STEP, "lattice": True, "unbiased": unbiased}).to_bytes()
            restored = nz.decompress(data, base=arrays)
            assert all(np.array_equal(restored[name], values) for name, values in arrays.items())


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_method_keeps_its_contract(unbiased):
    check_recipe(Nearzip(0.01, unbiased=unbiased, lattice=True))


def along(old, new, restored) -> float:
    """How far the restored update reaches along the update, in its lengths."""
    update = new.astype(np.float64) - old
    return float((update * (restored.astype(np.float64) - old)).sum() / (update**2).sum())


def test_an_update_keeps_its_length_along_itself():
    old, new = versions(shape=(600, 100))
    biased, unbiased = (
        nz.decompress(nz.compress(new, old, options=options).to_bytes(), base=old)["large"]
        for options in ({"step": STEP, "lattice": True}, {"step": STEP, "lattice": True, "unbiased": True})
    )
    assert along(old["large"], new["large"], biased) < 0.8
    assert along(old["large"], new["large"], unbiased) == pytest.approx(1, abs=0.05)


def test_the_gain_is_that_of_the_points():
    rng = np.random.default_rng(8)
    x, base = rng.laplace(0, 0.2, (2, 1003))
    d = x - base
    points = nearest_points(d, 1.0).reshape(-1)[: d.size] / 2
    assert e8_gain(x, base, 1.0) == pytest.approx((d**2).sum() / (d * points).sum())
    assert e8_gain(np.zeros(9), None, 1.0) == 1
    stage = UnbiasedE8Step(0.3, gain=1.5)
    assert stage.to_json() == E8Step(0.3).to_json() == {"id": "e8-step", "step": 0.3}
    assert stage.spacing == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("bound", "options", "said"),
    [
        (nz.Absolute(0.1), {"step": 0.1, "lattice": True}, "lattice promises nothing"),
        (nz.Lossless(), {"step": 0.1, "lattice": True}, "lattice promises nothing"),
        (None, {"lattice": True}, "lattice goes with a step"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(bound, options, said):
    _, new = versions()
    with pytest.raises(UsageError, match=said):
        nz.compress(new, bound=bound, options=options)


def test_steps_make_sense():
    for step in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError):
            E8Step(step)


def test_versions_of_a_store_keep_the_option(tmp_path):
    old, new = versions(wide=0.5)
    store = nz.Store(str(tmp_path / "store"), create=True, options={"step": STEP, "lattice": True})
    store.commit(old)
    first = store.checkout(0)
    store.commit(new)
    expected = nz.compress(new, first, options={"step": STEP, "lattice": True}).restored
    assert all(np.array_equal(store.checkout(1)[name], values) for name, values in expected.items())


def test_points_cost_little_to_keep_exactly():
    """As versions of a store that are coded again, against another one."""
    old, new = versions(wide=0.5)
    archive = nz.compress(new, old, options={"step": STEP, "lattice": True})
    (step,) = steps_of(archive.report.index)["large"]
    assert step == STEP / 2
    context = Context.of(old["large"].reshape(-1), archive.restored["large"].reshape(-1))
    sizes = [
        len(pipeline.encode(old["large"].reshape(-1), context))
        for pipeline in (Pipeline((StepThenBits(step, delta=True), Rans())), Pipeline((ContextDelta(),)))
    ]
    assert sizes[0] < sizes[1] / 2


def test_from_the_shell(tmp_path):
    old, new = versions()
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    nearzip = [sys.executable, "-m", "nearzip"]
    base = ["--base", "old.safetensors"]
    packed = ["new.safetensors", *base, "--set", f"step={STEP}", "--set", "lattice=true", "-o", "update.nz"]
    subprocess.run([*nearzip, "compress", *packed], cwd=tmp_path, check=True, capture_output=True)
    unpacked = ["update.nz", *base, "-o", "restored.safetensors"]
    subprocess.run([*nearzip, "decompress", *unpacked], cwd=tmp_path, check=True, capture_output=True)
    expected = nz.compress(new, old, options={"step": STEP, "lattice": True}).restored
    restored = load_file(tmp_path / "restored.safetensors")
    assert all(np.array_equal(restored[name], expected[name]) for name in new)


def test_differences_are_those_to_the_base():
    old, new = versions()
    x, base = new["large"].reshape(-1), old["large"].reshape(-1)
    pipeline, context = Pipeline((SubtractBase(), E8Step(STEP))), Context.of(x, base)
    moved = (nearest_points(x.astype(np.float64) - base, STEP) * 0.5 * STEP).reshape(-1)[: x.size]
    decoded = pipeline.decode(pipeline.encode(x, context), context)
    assert np.array_equal(decoded, (base.astype(np.float64) + moved).astype(np.float32))
