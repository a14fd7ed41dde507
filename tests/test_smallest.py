"""The smallest of the codings that keep the promise is taken, and the report says which."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

import nearzip as nz
from nearzip import blocks, choice
from nearzip.bounds import Statistics, violations
from nearzip.recipes import recipe_types
from nearzip.tensors import DTYPES
from nearzip.testing.pairs import usable_methods

pytestmark = pytest.mark.filterwarnings("ignore::nearzip.errors.UpdateLostWarning")

RNG = np.random.default_rng(0)
N = 1 << 15


def noise(dtype: str = "float32", scale: float = 0.05, n: int = N) -> np.ndarray:
    return RNG.normal(0, scale, (64, n // 64)).astype(DTYPES[dtype])


def restored(archive: nz.Archive, base: dict | None = None) -> dict[str, np.ndarray]:
    found = nz.decompress(archive.to_bytes(), base=base if archive.base_id else None)
    assert all(found[name].tobytes() == array.tobytes() for name, array in archive.restored.items())
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float32", "float64"])
@pytest.mark.parametrize("bound", ["rms:1e-3", "abs:1e-6", "rel:1e-9", "pwrel:1e-4", "pwrel:1e-12"])
def test_a_bound_finer_than_the_dtype_costs_no_more_than_every_bit(dtype, bound):
    base = {"w": noise(dtype, n=1 << 14)}
    new = {"w": (base["w"].astype(np.float64) + RNG.normal(0, 1e-3, base["w"].shape)).astype(DTYPES[dtype])}
    for held in (None, base):
        exact = nz.compress(new, base=held)
        for method in usable_methods():
            recipe = recipe_types()[method]
            if recipe.fallback != "values" or not recipe.promises:
                continue
            try:
                archive = nz.compress(new, base=held, bound=bound, method=method)
            except nz.errors.UsageError:
                continue
            assert archive.nbytes <= 1.01 * exact.nbytes + 64, method
            tolerance = nz.bounds.parse_bound(bound).tolerance(Statistics.of(new["w"]))
            assert not violations(new["w"].reshape(-1), restored(archive, held)["w"].reshape(-1), tolerance).size


@pytest.mark.parametrize("method", usable_methods())
def test_a_base_that_does_not_help_is_not_needed(method):
    recipe = recipe_types()[method]
    base, new = ({f"l{i}": noise() for i in range(2)} for _ in range(2))
    without = nz.compress(new, method=method)
    archive = nz.compress(new, base=base, method=method)
    if recipe.promises or not recipe.uses_base:
        assert archive.nbytes <= without.nbytes + 200
        assert archive.base_id is None
        assert restored(archive)["l0"].tobytes() == without.restored["l0"].tobytes()
    if recipe.promises and recipe.uses_base:
        assert set(archive.report.choices.values()) == {"no-base"}
        assert "2 without the base" in repr(archive)


@pytest.mark.parametrize("bound", [None, "rms:0.01", "rms:0.05", "pwrel:0.01"])
def test_only_tensors_whose_base_helps_need_it(bound):
    base, new = {"near": noise(), "far": noise()}, {"far": noise()}
    new["near"] = base["near"] + np.float32(1e-5)
    archive = nz.compress(new, base=base, bound=bound, options={"finer": 0})
    apart = [nz.compress({name: new[name]}, base=base, bound=bound, options={"finer": 0}) for name in new]
    assert archive.nbytes <= sum(one.nbytes for one in apart)
    with nz.open(archive.to_bytes(), base={"near": base["near"], "far": new["far"]}) as reader:
        assert {report.spec.name: report.with_base for report in reader.tensor_reports()}["near"]
    assert apart[1].base_id is not None


def repeats() -> dict[str, np.ndarray]:
    head, row = noise(n=1 << 14), np.arange(100)
    k = np.arange(65)[:, None]
    return {
        "mask": np.tril(np.ones((512, 512), bool)),
        "rows": head.repeat(4, 0),
        "copies far apart": np.concatenate([noise(n=1 << 18)] * 2),
        "filters": RNG.normal(size=(32, 32, 1, 3, 3)).astype(np.float32).repeat(3, 2),
        "integers": (RNG.integers(-90, 90, (128, 256)) * 0.013).astype(np.float32),
        "positions": row[:, None] // 10 - row // 10 + 11,
        "basis": np.cos(2 * np.pi * np.arange(128) * k / 128).astype(np.float32),
        "constant rows": np.broadcast_to(noise(n=1 << 10)[:1], (300, 16)).copy(),
        "pruned": np.where(RNG.random((256, 256)) < 0.1, RNG.normal(size=(256, 256)), 0).astype(np.float32),
    }


@pytest.mark.parametrize(("what", "values"), repeats().items(), ids=list(repeats()))
def test_what_repeats_is_as_small_as_zstd_makes_it(what, values):
    theirs = len(zstandard.ZstdCompressor(level=19).compress(values.tobytes()))
    archive = nz.compress({"w": values})
    assert archive.nbytes <= 1.03 * theirs + 600
    assert restored(archive)["w"].tobytes() == values.tobytes()
    # A bound cannot make it larger.
    assert nz.compress({"w": values}, bound="abs:1e-7").nbytes <= 1.01 * archive.nbytes + 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_takes_no_more_than_its_bytes(dtype):
    n = N * DTYPES[dtype].itemsize
    raw = RNG.integers(0, 2 if dtype == "bool" else 256, n, np.uint8).view(DTYPES[dtype])
    for method in usable_methods():
        archive = nz.compress({"w": raw}, method=method)
        assert archive.nbytes <= 1.01 * raw.nbytes + 700, method
        restored(archive)


def test_pruned_and_clustered_tensors_stay_what_the_method_makes_of_them():
    values = noise("float8_e4m3fn")
    for method in ("deepsz-nearzip", "deep-compression", "weightless"):
        archive = nz.compress({"w": values}, method=method, options={"keep": 0.2})
        kept = restored(archive)["w"]
        assert 0.7 < np.count_nonzero(kept == 0) / kept.size < 0.9


def test_the_report_says_which_coding_was_taken():
    tensors = {"half": noise("bfloat16"), "rows": noise(n=1 << 12).repeat(16, 0), "weights": noise()}
    archive = nz.compress(tensors, bound={"half": "abs:1e-6", "*": "abs:1e-4"})
    assert archive.report.choices == {"half": "exact", "rows": "repeats"}
    assert archive.report.choices_text == "1 exactly, 1 exactly, by their repeats"
    assert repr(archive).endswith("; smaller than asked: 1 exactly, 1 exactly, by their repeats>")


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_of_one_tensor_may_differ(threads):
    old = {"w": noise(n=1 << 22)}
    new = {"w": old["w"].copy()}
    new["w"][: 1 << 14] += np.float32(1e-5)
    new["w"].reshape(-1)[1 << 21 :] = RNG.normal(0, 0.05, 1 << 21)
    archive = nz.compress(new, base=old, threads=threads)
    assert restored(archive, old)["w"].tobytes() == new["w"].tobytes()
    pipelines = {block.pipeline.needs_base for segment in archive.report.index.segments for block in segment.blocks}
    assert pipelines == {True, False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.06, 0.2])
def test_some_zeros_are_coded_apart(dtype, share):
    dense = noise(dtype, n=1 << 20)
    values = np.where(RNG.random(dense.shape) < share, np.zeros((), dense.dtype), dense)
    archive = nz.compress({"w": values})
    assert restored(archive)["w"].tobytes() == values.tobytes()
    # Which values are zero, and the others as they are coded without zeros. Spread over the planes, zeros cost twice.
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    others = nz.compress({"w": dense.ravel()[: int((1 - share) * dense.size)].copy()}).nbytes
    assert archive.nbytes < 1.01 * (others + entropy * values.size / 8) + 100


def test_some_zeros_in_a_small_tensor():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(1152) < 0.2, np.float32(0), rng.normal(0, 0.05, 1152).astype("f4"))
    archive = nz.compress({"w": values})
    of_the_index = 350
    assert archive.nbytes - of_the_index < 0.95 * len(zstandard.ZstdCompressor(level=19).compress(values.tobytes()))


def test_small_tensors_share_the_blocks_of_large_ones_where_no_base_helps():
    def network(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        small = {f"b{i}": rng.normal(0, 0.05, 512).astype("f4") for i in range(64)}
        return {**small, **{f"w{i}": rng.normal(0, 0.05, (128, 256)).astype("f4") for i in range(4)}}

    new, other = network(1), network(2)
    alone, update = nz.compress(new), nz.compress(new, base=other)
    assert update.nbytes <= alone.nbytes + 20
    assert update.base_id is None
    # Small tensors that did not change are another matter.
    changed = {**other, **{name: array for name, array in new.items() if name[0] == "b"}}
    assert nz.compress(new, base=changed).nbytes < 0.85 * alone.nbytes


def test_of_many_small_tensors_some_are_looked_at_together(monkeypatch):
    def network(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        small = {f"b{i}": rng.normal(0, 0.05, 2048).astype("f4") for i in range(600)}
        return {**small, "w": rng.normal(0, 0.05, (128, 256)).astype("f4")}

    seen: list[int] = []

    def is_far(values: np.ndarray, base: np.ndarray) -> bool:
        seen.append(values.nbytes)
        return choice.is_far(values, base)

    monkeypatch.setattr(blocks, "is_far", is_far)
    archive = nz.compress(network(1), base=network(2))
    assert archive.base_id is None
    assert len(seen) == 2
    assert max(seen) <= 1 << 20 < 600 * 8192
