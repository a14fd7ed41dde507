"""Moments in few bits: the error of the next update is bounded, and what rounding cannot hold is exact."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

import nearzip as nz
from nearzip import errors
from nearzip.moments import expand, expand_moments, shrink_moments
from nearzip.torch import Moments, TrainingState, capture
from tests.training.small import small_model, train

EPS = 1e-8


def adam_state(m, v):
    tensors = {"p/exp_avg": m, "p/exp_avg_sq": v}
    return {
        "exp_avg": {"t": "p/exp_avg"},
        "exp_avg_sq": {"t": "p/exp_avg_sq"},
        "step": {"x": ["float32", 3.0]},
    }, tensors


def through(m, v, moments, predictions=None):
    node, tensors = adam_state(m, v)
    node = shrink_moments(node, tensors, {"eps": EPS}, moments, {} if predictions is None else predictions)
    out = expand_moments(node, tensors)
    assert out["step"] == {"x": ["float32", 3.0]}
    get = {k: tensors[x["t"]] if isinstance(x, dict) else x for k, x in out.items() if k != "step"}
    return get["exp_avg"], get["exp_avg_sq"], tensors


def update(m, v):
    return m.astype(np.float64) / (np.sqrt(v.astype(np.float64)) + EPS)


@pytest.mark.parametrize("step", [2.0, 1.0, 0.25])
@pytest.mark.parametrize("variance", [0.0625, 0.5, 1, 2, 3])
@pytest.mark.parametrize("shape", [(), (1,), (300,), (40, 30), (8, 3, 3, 3)])
def test_the_error_of_the_update_is_bounded(step, variance, shape):
    rng = np.random.default_rng(0)
    v = np.exp(rng.normal(-15, 4, shape)).astype(np.float32).reshape(shape)
    m = (np.sqrt(v) * rng.normal(0, 0.7, shape)).astype(np.float32).reshape(shape)
    m2, v2, tensors = through(m, v, Moments(step, variance))
    assert m2.shape == v2.shape == shape
    assert np.abs(update(m2, v2) - update(m, v)).max() <= step / 2 * 1.0001
    assert np.abs(np.log2(v2 / v)).max() <= variance / 2 * 1.0001
    assert "p/exp_avg" not in tensors
    assert all(a.dtype.kind == "i" for name, a in tensors.items() if not name.endswith("exact"))


@pytest.mark.parametrize("step", [1.0, 2.0, 3.0])
def test_unbiased_first_moments_keep_their_length_along_themselves(step):
    rng = np.random.default_rng(0)
    v = np.exp(rng.normal(-15, 4, (40, 30))).astype(np.float32)
    m = (np.sqrt(v) * rng.normal(0, 0.9, v.shape)).astype(np.float32)
    v[0, 0], m[0, 1], m[1, 1] = 0, math.nan, 0
    ways = ((1e-3, False), (step, False), (step, True))
    exact, plain, unbiased = (
        update(np.nan_to_num(got, nan=0), v2)
        for got, v2, _ in (through(m, v, Moments(each, 0.0625, unbiased=u)) for each, u in ways)
    )
    exact[0, 0] = plain[0, 0] = unbiased[0, 0] = 0
    length = np.vdot(exact, exact)
    assert np.vdot(unbiased, exact) == pytest.approx(length, rel=0.01)
    assert abs(np.vdot(plain, exact) / length - 1) > abs(np.vdot(unbiased, exact) / length - 1)
    assert (np.sign(unbiased) == np.sign(plain)).all()


def test_unbiased_without_a_value_that_reaches_a_level():
    v, m = np.ones((3, 4), np.float32), np.full((3, 4), 0.1, np.float32)
    got, _, _ = through(m, v, Moments(2, 1, unbiased=True))
    assert (got == 0).all()


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-38, 3e38, -1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SPECIAL), st.sampled_from(SPECIAL)), max_size=6), st.sampled_from([0.5, 1, 2])
)
def test_what_rounding_cannot_hold_is_exact(pairs, variance):
    v, m = np.full((20, 40), 1e-4, np.float32), np.full((20, 40), 3e-3, np.float32)
    for i, (one, other) in enumerate(pairs):
        v[i, i], m[i, i] = one, other
    m2, v2, _ = through(m, v, Moments(1.0, variance))
    with np.errstate(all="ignore"):
        good = (np.abs(np.log2(v2.astype(float) / v)) <= variance / 2 + 1e-5) | (v2.view("u4") == v.view("u4"))
        near = np.abs(m2.astype(float) / (np.sqrt(v2.astype(float)) + EPS) - update(m, v)) <= 0.50001
    assert good.all()
    assert (near | (m2.view("u4") == m.view("u4"))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    model = small_model(0).to(dtype)
    optimizer = optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = capture(model, optimizer, rng=False).shrunk(Moments(), {})
    again = TrainingState.from_arrays(state.to_arrays()).expanded()
    for parameter, (_, nodes) in zip(model.parameters(), again.document["optimizers"][0]["state"], strict=True):
        array = again.tensors[nodes["exp_avg"]["t"]]
        assert array.dtype.name == str(dtype).removeprefix("torch.")
        assert array.shape == tuple(parameter.shape)


def test_momentum_buffers_and_dropping():
    rng = np.random.default_rng(1)
    buffer = rng.normal(0, 3, (50, 20)).astype(np.float32)
    buffer[3, 4] = math.nan
    tensors = {"b": buffer}
    node = shrink_moments({"momentum_buffer": {"t": "b"}}, tensors, {}, Moments(momentum=0.5), {})
    out = expand_moments(node, tensors)["momentum_buffer"]
    rms = math.sqrt(np.square(buffer[np.isfinite(buffer)]).sum() / buffer.size)
    assert np.nanmax(np.abs(out - buffer)) <= 0.25 * rms * 1.0001
    assert out.view("u4")[3, 4] == buffer.view("u4")[3, 4]
    tensors = {"b": buffer}
    node = shrink_moments({"momentum_buffer": {"t": "b"}}, tensors, {}, Moments(momentum=math.inf), {})
    assert not tensors
    assert np.array_equal(expand_moments(node, {})["momentum_buffer"], np.zeros((50, 20), np.float32))


def test_levels_change_only_where_moments_do():
    rng = np.random.default_rng(2)
    v = np.exp(rng.normal(-15, 2, (60, 50))).astype(np.float32)
    predictions = {}
    _, _, first = through(np.zeros_like(v), v, Moments(), predictions)
    v[:5] *= 4
    _, _, second = through(np.zeros_like(v), v, Moments(), predictions)
    changed = first["p/exp_avg_sq.levels"] != second["p/exp_avg_sq.levels"]
    assert changed[:5].all()
    assert not changed[5:].any()


def test_prediction_takes_what_rows_and_columns_explain():
    rng = np.random.default_rng(3)
    v = np.exp2(rng.normal(-20, 5, (200, 1)) + rng.normal(0, 5, (1, 300)) + rng.normal(0, 0.3, (200, 300)))
    v = v.astype(np.float32)
    _, _, tensors = through(np.zeros_like(v), v, Moments())
    assert nz.compress(tensors).nbytes * 8 / v.size < 2.2  # log2 of v itself has more than 5 bits of entropy


@pytest.mark.parametrize(
    "values", [{"mean": 0}, {"mean": -1}, {"variance": 0.3}, {"variance": 0}, {"momentum": math.nan}]
)
def test_steps_that_cannot_be_meant(values):
    with pytest.raises(errors.UsageError, match="moments: the step of"):
        Moments(**values)


def test_damaged_levels_are_named():
    rng = np.random.default_rng(4)
    v = np.exp(rng.normal(-15, 2, (30, 20))).astype(np.float32)
    v[3, 3] = math.nan
    node, tensors = adam_state(np.zeros_like(v), v)
    node = shrink_moments(node, tensors, {"eps": EPS}, Moments(), {})
    for name, array in tensors.items():
        for wrong in (array[:-1], array.astype(np.float32) if array.dtype.kind == "i" else array[:0], array[None]):
            with pytest.raises(errors.CorruptError):
                expand_moments(node, {**tensors, name: wrong})
        with pytest.raises(errors.CorruptError):
            expand_moments(node, {n: a for n, a in tensors.items() if n != name})
    for kind, key, value in [("v", "step", 0.3), ("v", "dtype", "int8"), ("v", "levels", 3), ("m", "eps", math.nan),
                             ("m", "step", "x"), ("v", "places", "p/exp_avg_sq.levels")]:  # fmt: skip
        which = {"v": "exp_avg_sq", "m": "exp_avg"}[kind]
        with pytest.raises(errors.CorruptError):
            expand_moments({**node, which: {kind: {**node[which][kind], key: value}}}, tensors)


def test_training_goes_on_from_coarse_moments():
    model = small_model(0)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, None, 20)
    state = capture(model, optimizer)
    small = state.shrunk(Moments(), {})
    exact, coarse = (nz.compress(s.to_arrays()).nbytes for s in (state, small))
    assert coarse < exact


def test_second_moments_by_rows_and_columns_alone():
    rng = np.random.default_rng(5)
    logs = rng.normal(-20, 3, (40, 1)) + rng.normal(0, 3, (1, 60))
    v = np.exp2(logs).astype(np.float32)
    m = (np.sqrt(v) * rng.normal(0, 0.7, v.shape)).astype(np.float32)
    m2, v2, tensors = through(m, v, Moments(1.0, math.inf))
    assert np.abs(np.log2(v2 / v)).max() < 0.2
    assert np.abs(update(m2, v2) - update(m, v)).max() <= 0.501
    assert {a.size for n, a in tensors.items() if "exp_avg_sq" in n} == {40, 60}
    bias, _, _ = through(m[0], v[0], Moments(1.0, math.inf))
    assert np.abs(update(bias, through(m[0], v[0], Moments(1.0, math.inf))[1]) - update(m[0], v[0])).max() <= 0.501


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
import numpy as np
import nearzip as nz
from nearzip.moments import expand
np.savez(sys.argv[2], **expand(nz.decompress(sys.argv[1])))
"""


@pytest.mark.parametrize("moments", [Moments(), Moments(variance=math.inf), Moments(mean=math.inf)])
def test_a_reader_without_torch_gets_the_moments(tmp_path, moments):
    model = small_model(0)
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, None, 3)
    state = capture(model, optimizer).shrunk(moments, {})
    nz.compress(state.to_arrays()).save(tmp_path / "a.nz")
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(tmp_path / "a.nz"), str(tmp_path / "b.npz")]
    subprocess.run(command, check=True)
    found = np.load(tmp_path / "b.npz")
    expected = state.expanded()
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        for key in ("exp_avg", "exp_avg_sq"):
            whole = f"optimizer/{name}/{key}"
            np.testing.assert_array_equal(found[whole], expected.tensors[whole])
    wanted = {f"optimizer/{name}/{key}" for name in names for key in ("exp_avg", "exp_avg_sq")}
    assert {name for name in found if name.startswith("optimizer/")} >= wanted
    assert not [name for name in found if name.endswith((".levels", ".rows", ".columns", ".places", ".exact"))]
    assert set(found) >= {f"model/{name}" for name in names}


def test_plain_tensors_are_no_training_state():
    with pytest.raises(errors.CorruptError, match="not a training state"):
        expand({"w": np.zeros(3)})
