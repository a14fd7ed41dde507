"""QD-Compressor against its equations, written out value by value; and what a network makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import CorruptError, UsageError
from nearzip.recipes.qd_compressor import bit_widths, weighted_entropy
from nearzip.stages import Coded, Context, RangeQuantize
from nearzip.tensors import DTYPES

rng = np.random.default_rng(11)
OLD = {
    "conv.weight": rng.normal(0, 0.1, (16, 8, 3, 3)).astype(np.float32),
    "conv.bias": rng.normal(0, 0.01, 16).astype(np.float32),
    "fc.weight": rng.standard_t(3, (40, 30)).astype(np.float32),
    "norm": np.ones(9, np.float32),
}
NEW = {name: (a + rng.normal(0, 0.01 * (a.std() + 0.1), a.shape)).astype(np.float32) for name, a in OLD.items()}


def levels(values: np.ndarray, bits: int) -> tuple[list[int], float, float]:
    """Equations 3 to 5, one value at a time."""
    x = [float(v) for v in values.reshape(-1)]
    scale = (max(x) / (2**bits - 1) - min(x) / (2**bits - 1)) or 1.0
    zero = 0 - min(x) / scale
    return [min(2**bits - 1, max(0, round(v / scale + zero))) for v in x], scale, zero


def by_hand(new: np.ndarray, base: np.ndarray | None, bits: int) -> tuple[list[int], list[float]]:
    """Symbols of equation 8 and values of equation 9."""
    q1, scale, zero = levels(new, bits)
    q2 = [0] * len(q1) if base is None else levels(base, bits)[0]
    symbols = [(a - b) % 2**bits for a, b in zip(q1, q2, strict=True)]
    return symbols, [scale * ((d + b) % 2**bits - zero) for d, b in zip(symbols, q2, strict=True)]


@pytest.mark.parametrize("bits", [1, 4, 8, 9, 16])
@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("delta", [False, True])
def test_the_stage_is_equations_3_to_5_8_and_9(name, bits, delta):
    x, base = NEW[name].reshape(-1), OLD[name].reshape(-1)
    context = Context.of(x, base)
    stage = RangeQuantize(bits, delta)
    coded = stage.encode(x, context)
    symbols, restored = by_hand(x, base if delta else None, bits)
    assert coded.symbols.tolist() == symbols
    assert stage.decode(coded, context).tolist() == restored


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_restored_network_is_within_half_a_level(bits):
    archive = nz.compress(NEW, base=OLD, method="qd-compressor", options={"bits": bits})
    for name, x in NEW.items():
        half = (float(x.max()) - float(x.min())) / (2**bits - 1) / 2
        error = np.abs(archive.restored[name].astype(float) - x).max()
        assert error <= half * 1.0001 + 1e-6, name


def test_entropy_is_equation_1():
    for values in NEW.values():
        counts, _ = np.histogram(values.astype(float), 256)
        shares = [c / values.size for c in counts if c]
        assert weighted_entropy(values) == pytest.approx(-sum(p * math.log(p) for p in shares), abs=0.02)
    assert weighted_entropy(np.array([np.nan, np.inf], np.float32)) == 0.0
    assert weighted_entropy(np.array([], np.float32)) == 0.0
    assert weighted_entropy(np.array([1.7e308, -1.7e308])) == pytest.approx(math.log(2))


def test_bit_widths_are_equation_2():
    assert bit_widths([0.0, 5.0, 2.4, 2.6], 4, 8) == [4, 8, 6, 6]
    assert bit_widths([0.0, 1.0, 0.125], 4, 8) == [4, 8, 5]
    assert bit_widths([1.5, 1.5], 4, 8) == [8, 8]
    assert bit_widths([], 4, 8) == []


def test_layers_get_bits_by_their_entropy():
    archive = nz.compress(NEW, base=OLD, method="qd-compressor")
    bits = {
        spec.name: segment.blocks[0].pipeline.stages[0].bits
        for segment in archive.report.index.segments
        for spec in segment.tensors
    }
    entropies = {name: weighted_entropy(a) for name, a in NEW.items()}
    expected = dict(zip(NEW, bit_widths(list(entropies.values()), 4, 8), strict=True))
    assert bits == expected
    assert {4, 8} <= set(bits.values())


def test_equal_entropies_give_b_max():
    x = {name: np.linspace(-1, 1, 300, dtype=np.float32) * (i + 1) for i, name in enumerate("abc")}
    archive = nz.compress(x, method="qd-compressor", options={"b_max": 7})
    assert {s.blocks[0].pipeline.stages[0].bits for s in archive.report.index.segments} == {7}


@pytest.mark.parametrize("variant", ["local", "delta-first", "global"])
@pytest.mark.parametrize("backend", ["lzma", "zstd", "gzip"])
def test_variants_and_backends_restore_from_their_bytes(variant, backend):
    options = {"variant": variant, "backend": backend, "bits": "8"}
    for base in (None, OLD):
        archive = nz.compress(NEW, base=base, method="qd-compressor", options=options)
        restored = nz.decompress(archive.to_bytes(), base=base)
        assert {n: a.tobytes() for n, a in restored.items()} == {n: a.tobytes() for n, a in archive.restored.items()}


def test_the_global_variant_has_one_range_for_all_layers():
    archive = nz.compress(NEW, base=OLD, method="qd-compressor", options={"variant": "global", "bits": 4})
    low, high = min(float(a.min()) for a in NEW.values()), max(float(a.max()) for a in NEW.values())
    (pipeline,) = {block.pipeline for segment in archive.report.index.segments for block in segment.blocks}
    assert (pipeline.stages[0].low, pipeline.stages[0].high) == (low, high)
    coarse = np.abs(archive.restored["conv.weight"] - NEW["conv.weight"]).max()
    assert coarse <= (high - low) / 15 / 2 * 1.001


def test_delta_first_is_finer_and_larger():
    sizes = {
        variant: nz.compress(NEW, base=OLD, method="qd-compressor", options={"variant": variant, "bits": 8}).nbytes
        for variant in ("local", "delta-first")
    }
    assert sizes["local"] < sizes["delta-first"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_values_that_are_not_finite_stay_and_do_not_widen_the_range(dtype):
    x = np.array([1.0, -1.0, np.nan, 0.5], np.float32).astype(DTYPES[dtype])
    archive = nz.compress({"x": x}, method="qd-compressor", options={"bits": 4})
    restored = nz.decompress(archive.to_bytes())["x"]
    assert np.isnan(restored[2].astype(np.float32))
    assert restored[:2].astype(np.float32).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    "options", [{"bits": 0}, {"bits": 17}, {"b_min": 9}, {"b_max": 3}, {"b_min": 0}, {"variant": "x"}]
)
def test_settings_that_cannot_be_meant_are_refused(options):
    with pytest.raises(UsageError):
        nz.compress(NEW, method="qd-compressor", options=options)


@pytest.mark.parametrize("bound", ["abs:1e-3", "lossless", nz.Rms(0.1), {"*": "rel:0.1"}])
def test_a_bound_is_refused(bound):
    with pytest.raises(UsageError, match="qd-compressor promises nothing"):
        nz.compress(NEW, method="qd-compressor", bound=bound)


def test_ranges_that_make_no_sense_are_corrupt():
    x = np.arange(6, dtype=np.float32)
    context = Context(x.dtype, (2, 4))
    stage = RangeQuantize(4, delta=False)
    coded = stage.encode(x, context)
    for side in ((1.0, 0.0, 0.0, 1.0), (0.0, math.inf, 0.0, 1.0), (math.nan, 1.0, 0.0, 1.0), (0.0, 1.0)):
        with pytest.raises(CorruptError, match="range"):
            stage.decode(Coded(coded.symbols, np.array(side, np.float32).tobytes()), context)
    with pytest.raises(CorruptError, match="beyond its range"):
        stage.decode(Coded(coded.symbols + 16, coded.side), context)
