"""Steps that keep the length of an update along its own direction: what is restored, what is refused."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip import _core
from nearzip.errors import UsageError
from nearzip.stages import UniformStep
from nearzip.stages.quantize import UnbiasedStep, unbiased_gain
from tests import twins

STEP = 0.004


def versions(dtype=np.float32, n: int = 60_000):
    rng = np.random.default_rng(5)
    old = {"large": rng.normal(0, 0.1, (n // 100, 100)), "small": rng.normal(0, 0.1, 70)}
    return (
        {name: values.astype(dtype) for name, values in old.items()},
        {name: (values + rng.laplace(0, STEP / 6, values.shape)).astype(dtype) for name, values in old.items()},
    )


def along(old, new, restored) -> float:
    """How far the restored update reaches along the update, in its lengths."""
    update = new.astype(np.float64) - old
    return float((update * (restored.astype(np.float64) - old)).sum() / (update**2).sum())


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [1e-30, 0.004, 3.0])
def test_the_projection_is_that_of_the_rounded_values(step, dtype, with_base):
    rng = np.random.default_rng(1)
    x = rng.laplace(0, 0.004, 1003).astype(dtype)
    x[[3, 500, 1002]] = np.nan, np.inf, 1e30
    base = rng.normal(0, 0.004, x.size).astype(dtype) if with_base else None
    symbols = twins.quantize(x, base, step).astype(np.float64)
    with np.errstate(all="ignore"):
        ratio = (x.astype(np.float64) - (0 if base is None else base)) / step
    ratio = np.where(np.abs(ratio) < 2.0**30, ratio, 0)
    itself, rounded = _core.projection(x, base, step)
    assert itself == pytest.approx((ratio**2).sum(), rel=1e-12)
    assert rounded == pytest.approx((ratio * symbols).sum(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_an_update_keeps_its_length_along_itself(dtype):
    old, new = versions(dtype)
    plain = nz.compress(new, old, options={"step": STEP}).to_bytes()
    kept = nz.compress(new, old, options={"step": STEP, "unbiased": True}).to_bytes()
    biased, unbiased = (nz.decompress(data, base=old) for data in (plain, kept))
    if np.dtype(dtype).itemsize > 2:
        assert along(old["large"], new["large"], biased["large"]) < 0.8
        assert along(old["large"], new["large"], unbiased["large"]) == pytest.approx(1, abs=0.05)
    assert np.array_equal(biased["small"], unbiased["small"])
    assert abs(len(kept) - len(plain)) < 0.01 * len(plain) + 200


def test_what_is_not_finite_comes_back_bit_for_bit():
    old, new = versions()
    new["large"][0, :4] = np.nan, np.inf, -np.inf, 1e38
    data = nz.compress(new, old, options={"step": STEP, "unbiased": True}).to_bytes()
    restored = nz.decompress(data, base=old)["large"][0, :4]
    assert restored[:3].tobytes() == new["large"][0, :3].tobytes()
    assert np.isfinite(restored[3])


def test_nothing_moved_and_nothing_there():
    old, _ = versions()
    for arrays in (old, {"x": np.zeros((0, 4), np.float32)}, {"x": np.zeros((200, 200), np.float32)}):
        data = nz.compress(arrays, arrays, options={"step": STEP, "unbiased": True}).to_bytes()
        restored = nz.decompress(data, base=arrays)
        assert all(np.array_equal(restored[name], values) for name, values in arrays.items())


def test_a_file_names_no_stage_of_its_own():
    old, new = versions()
    stage = UnbiasedStep(0.3, 1.5)
    assert stage.to_json() == UniformStep(0.3).to_json()
    assert stage.spacing == pytest.approx(0.2)
    archive = nz.compress(new, old, options={"step": STEP, "unbiased": True})
    stages = [
        stage for segment in archive.report.index.segments for b in segment.blocks for stage in b.pipeline.to_json()
    ]
    assert {stage["id"] for stage in stages} == {"subtract-base", "uniform-step", "rans"}
    assert all(set(stage) <= {"id", "step"} for stage in stages)


def test_the_gain_stays_within_reason():
    assert unbiased_gain(np.zeros(9), None, 1.0) == 1
    rare = np.full(40_000, 0.3, np.float32)
    rare[0] = 1.0
    data = nz.compress({"x": rare.reshape(200, 200)}, options={"step": 1.0, "unbiased": True}).to_bytes()
    assert nz.decompress(data)["x"].max() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("bound", "options", "said"),
    [(nz.Absolute(0.1), {"step": 0.1, "unbiased": True}, "cannot keep"), (None, {"unbiased": True}, "with a step")],
)
def test_a_promise_that_cannot_be_kept_is_refused(bound, options, said):
    _, new = versions()
    with pytest.raises(UsageError, match=said):
        nz.compress(new, bound=bound, options=options)


def test_versions_of_a_store_keep_the_option(tmp_path):
    old, new = versions()
    store = nz.Store(str(tmp_path / "store"), create=True, options={"step": STEP, "unbiased": True})
    store.commit(old)
    first = store.checkout(0)
    store.commit(new)
    assert along(first["large"], new["large"], store.checkout(1)["large"]) == pytest.approx(1, abs=0.05)


def test_from_the_shell(tmp_path):
    old, new = versions()
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    nearzip = [sys.executable, "-m", "nearzip"]
    options = ["--set", f"step={STEP}", "--set", "unbiased=true"]
    base = ["--base", "old.safetensors"]
    packed = ["new.safetensors", *base, *options, "-o", "update.nz"]
    subprocess.run([*nearzip, "compress", *packed], cwd=tmp_path, check=True, capture_output=True)
    unpacked = ["update.nz", *base, "-o", "restored.safetensors"]
    subprocess.run([*nearzip, "decompress", *unpacked], cwd=tmp_path, check=True, capture_output=True)
    restored = load_file(tmp_path / "restored.safetensors")
    assert along(old["large"], new["large"], restored["large"]) == pytest.approx(1, abs=0.05)
