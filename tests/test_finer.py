"""Finer steps for small tensors: how fine, what they may cost, and that bounds hold."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import UsageError
from nearzip.recipes.fine_steps import geometric_bits

BOUND = 5e-4


def network(dtype=np.float32, seed: int = 7):
    rng = np.random.default_rng(seed)
    shapes = {"large": (400, 400), "head": (10, 400), "stem": (16, 3, 3, 3), "bias": (400,), "scale": (16,)}
    old = {name: rng.normal(0, 0.1, shape).astype(dtype) for name, shape in shapes.items()}
    new = {n: (w.astype(np.float64) + rng.laplace(0, 2 * BOUND, w.shape)).astype(dtype) for n, w in old.items()}
    return old, {**new, "seen": np.array(3, np.int64), "none": np.zeros((0, 3), dtype)}


def steps_of(archive: nz.Archive) -> dict[str, float]:
    found = {}
    for segment in archive.report.index.segments:
        for block in segment.blocks:
            for stage in block.pipeline.stages:
                if hasattr(stage, "step"):
                    found |= {spec.name: stage.step for spec in segment.tensors}
    return found


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("bound", [nz.Absolute(BOUND), nz.Relative(1e-3), nz.Rms(0.01)])
@pytest.mark.parametrize("finer", [0.0, 0.02, 1.0])
def test_bounds_hold_and_no_step_is_coarser(dtype, with_base, bound, finer):
    old, new = network(dtype)
    base = old if with_base else None
    archive = nz.compress(new, base, bound=bound, options={"finer": finer})
    restored = nz.decompress(archive.to_bytes(), base=base)
    plain = steps_of(nz.compress(new, base, bound=bound, options={"finer": 0.0}))
    assert all(step <= plain[name] for name, step in steps_of(archive).items())
    assert np.array_equal(restored["seen"], new["seen"])
    for name, values in new.items():
        if values.size and name != "seen":
            wide = values.astype(np.float64)
            most = {"abs": BOUND, "rel": 1e-3 * np.ptp(wide), "rms": 0.01 * np.sqrt((wide**2).mean())}[bound.key]
            assert np.abs(restored[name].astype(np.float64) - wide).max() <= most * (1 + 1e-12)
            assert archive.restored[name].tobytes() == restored[name].tobytes()


def test_the_step_goes_with_the_root_of_the_size():
    old, new = network()
    steps = steps_of(nz.compress(new, old, options={"step": 2 * BOUND, "finer": 1.0}))
    assert steps["large"] == 2 * BOUND
    octaves = {name: np.log2(2 * BOUND / step) for name, step in steps.items()}
    # 160,000 values; 4,000; 432; vectors count 64-fold.
    assert {n: octaves[n] for n in ("head", "stem", "bias", "scale")} == {"head": 3, "stem": 4, "bias": 1, "scale": 4}


@pytest.mark.parametrize("share", [0.002, 0.01, 0.02])
def test_what_finer_steps_cost_stays_within_the_share(share):
    old, new = network()
    sizes = {
        finer: nz.compress(new, old, bound=nz.Absolute(BOUND), options={"finer": finer}).nbytes
        for finer in (0.0, share, 1.0)
    }
    assert sizes[0.0] <= sizes[share] <= (1 + share) * sizes[0.0] + 100
    assert sizes[share] < sizes[1.0]


def test_a_bound_and_a_step_are_treated_alike():
    old, new = network()
    by_bound = steps_of(nz.compress(new, old, bound=nz.Absolute(BOUND)))
    by_step = steps_of(nz.compress(new, old, options={"step": 2 * BOUND}))
    assert len(set(by_step.values())) > 1
    assert by_bound == pytest.approx(by_step, rel=2e-3)


def test_one_step_for_all_where_it_is_asked_for_or_nothing_is_to_be_had():
    old, new = network()
    for options in ({"step": 1e-3, "finer": 0.0}, {"step": 1e-3, "finer": 1e-9}):
        assert set(steps_of(nz.compress(new, old, options=options)).values()) == {1e-3}
    # Nothing moved: any share of nothing is nothing.
    archive = nz.compress(old, old, bound=nz.Absolute(BOUND))
    assert len(set(steps_of(archive).values())) == 1
    assert all(np.array_equal(archive.restored[name], values) for name, values in old.items())


def test_one_step_for_all_where_most_becomes_zero():
    old, new = network()
    assert set(steps_of(nz.compress(new, old, options={"step": 40 * BOUND})).values()) == {40 * BOUND}


def test_no_step_is_finer_than_the_values():
    old, new = network(ml_dtypes.bfloat16)
    steps = steps_of(nz.compress(new, old, options={"step": 2 * BOUND, "finer": 1.0}))
    largest = max(float(np.abs(new["stem"].astype(np.float64)).max()), 0.1)
    assert steps["stem"] == 2 * BOUND  # bfloat16 near 0.3 is 2^-9 apart
    assert largest < 1


def test_tensors_with_a_bound_of_their_own_keep_it():
    old, new = network()
    bounds = {"*": nz.Absolute(BOUND), "bias": nz.Absolute(10 * BOUND), "head": nz.Lossless()}
    archive = nz.compress(new, old, bound=bounds, options={"finer": 1.0})
    steps = steps_of(archive)
    assert steps["bias"] > 19 * BOUND
    assert "head" not in steps
    assert np.array_equal(archive.restored["head"], new["head"])


@pytest.mark.parametrize("finer", [-0.1, 1.5, float("nan"), "much"])
def test_a_share_is_a_share(finer):
    with pytest.raises(UsageError, match="finer"):
        nz.compress(network()[1], bound=nz.Absolute(BOUND), options={"finer": finer})


def test_values_that_are_not_finite_do_not_disturb_the_estimate():
    old, new = network()
    new["large"][0, :3] = np.nan, np.inf, 1e38
    archive = nz.compress(new, old, bound=nz.Absolute(BOUND))
    assert archive.restored["large"][0, :3].tobytes() == new["large"][0, :3].tobytes()
    assert len(set(steps_of(archive).values())) > 1


@pytest.mark.parametrize("scale", [0.05, 0.4, 3.0, 100.0])
def test_the_estimate_of_bits_is_near_the_entropy(scale):
    levels = np.rint(np.random.default_rng(1).laplace(0, scale, 200_000))
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    assert geometric_bits(np.abs(levels).mean()) == pytest.approx(-(shares * np.log2(shares)).sum(), rel=0.02, abs=0.01)


def test_versions_of_a_store_are_chained_with_them(tmp_path):
    old, new = network()
    store = nz.Store(str(tmp_path / "store"), create=True, bound=nz.Absolute(BOUND))
    store.commit(old | {"seen": new["seen"], "none": new["none"]})
    store.commit(new)
    restored = store.checkout(1)
    assert all(np.abs(restored[n].astype(np.float64) - w).max() <= BOUND for n, w in new.items() if w.size)


def test_calibrated_steps_stay_as_they_were_found():
    torch = pytest.importorskip("torch")
    from nearzip import calibrate

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    batches = [torch.randn(64, 64) for _ in range(4)]
    plan = calibrate.tune(module, batches, evaluate=lambda tensors: 0.0, max_loss=0.1, evaluations=1)
    assert {coding.options["finer"] for coding in plan.codings.values()} == {0.0}
    found = steps_of(calibrate.compress(module, batches, plan=plan))
    assert found == {name: coding.options["step"] for name, coding in plan.codings.items()}
