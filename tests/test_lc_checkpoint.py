"""LC-Checkpoint's buckets value by value, and Huffman coding against a decoder that reads bit by bit."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nearzip as nz
from nearzip.errors import CorruptError, UsageError
from nearzip.stages import Coded, Context, ExponentBuckets, Huffman
from nearzip.stages.huffman import _code_lengths, _get_table

rng = np.random.default_rng(12)
OLD = {"a": rng.normal(0, 0.1, (60, 50)).astype(np.float32), "b": rng.normal(0, 1, 70).astype(np.float32)}
NEW = {name: (w + rng.standard_t(3, w.shape) * 1e-3).astype(np.float32) for name, w in OLD.items()}


def buckets_by_hand(values: np.ndarray, bits: int) -> list[float]:
    members = defaultdict(list)
    for v in values.tolist():
        if v and math.isfinite(v):
            members[(math.frexp(v)[1], v > 0)].append(v)
    kept = sorted(members, reverse=True)[: 2**bits - 1]
    means = {key: float(np.float32(min(members[key]) / 2 + max(members[key]) / 2)) for key in kept}
    return [means.get((math.frexp(v)[1], v > 0), 0.0) if v and math.isfinite(v) else 0.0 for v in values.tolist()]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_buckets_are_those_of_sign_and_exponent(bits):
    values = np.concatenate([rng.standard_t(2, 500), [0.0, -0.0, np.nan, np.inf]]).astype(np.float32)
    context = Context.of(values)
    coded = ExponentBuckets(bits).encode(values, context)
    assert ExponentBuckets(bits).decode(coded, context).tolist() == buckets_by_hand(values, bits)


def test_every_tensor_has_its_own_buckets():
    archive = nz.compress(NEW, base=OLD, method="lc-checkpoint", options={"bits": 4})
    for name, w in NEW.items():
        delta = w.astype(np.float64) - OLD[name].astype(np.float64)
        expected = (OLD[name].reshape(-1) + np.array(buckets_by_hand(delta.reshape(-1), 4))).astype(np.float32)
        assert archive.restored[name].reshape(-1).tolist() == expected.tolist()


@pytest.mark.parametrize("bits", range(2, 9))
def test_it_restores_from_its_bytes(bits):
    for base in (None, OLD):
        archive = nz.compress(NEW, base=base, method="lc-checkpoint", options={"bits": bits})
        restored = nz.decompress(archive.to_bytes(), base=base)
        assert all(restored[name].tobytes() == archive.restored[name].tobytes() for name in NEW)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_widths_are_refused(bits):
    with pytest.raises(UsageError, match="2 to 8"):
        nz.compress(NEW, method="lc-checkpoint", options={"bits": bits})


# ---- huffman ---------------------------------------------------------------------------------------------------


def decode_by_hand(data: bytes, dtype: np.dtype, n: int) -> list[int]:
    """Reads bit by bit what the format says."""
    assert data[0] == 1
    alphabet, lengths, at = _get_table(data, dtype)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    codes, code, previous = {}, 0, 0
    for i in order:
        code <<= int(lengths[i]) - previous
        previous = int(lengths[i])
        codes[(previous, code)] = int(alphabet[i])
        code += 1
    if len(order) < 2:
        return [int(alphabet[0])] * n
    sizes = []
    for _ in range(-(-n // 4096) - 1):
        size = shift = 0
        while True:
            byte = data[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        sizes.append(size)
    out: list[int] = []
    for k in range(len(sizes) + 1):
        stretch = data[at : at + sizes[k]] if k < len(sizes) else data[at:]
        at += len(stretch)
        bits = "".join(f"{byte:08b}" for byte in stretch)
        wanted, place = min(4096, n - 4096 * k), 0
        for _ in range(wanted):
            length = next(j for j in range(1, 17) if (j, int(bits[place : place + j], 2)) in codes)
            out.append(codes[(length, int(bits[place : place + length], 2))])
            place += length
        assert len(bits) - place < 8
        assert "1" not in bits[place:]
    return out


@pytest.mark.parametrize("n", [1, 2, 100, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64"])
def test_huffman_reads_as_the_format_says(n, dtype):
    symbols = (rng.geometric(0.4, n) - (3 if dtype == "int32" else 0)).astype(dtype)
    context = Context(np.dtype(np.float32), (n,))
    coded = Huffman().encode(symbols, context)
    assert Huffman().decode(coded, context).tolist() == symbols.tolist()
    if coded.data[0]:
        assert decode_by_hand(coded.data, symbols.dtype, n) == symbols.tolist()
    assert coded.data[0] or n < 100


def test_huffman_is_optimal_where_codes_are_short():
    symbols = np.repeat(np.arange(6, dtype=np.uint8), [45, 13, 12, 16, 9, 5])
    # The textbook's example: 224 bits for 100 symbols.
    counts = np.unique(symbols, return_counts=True)[1]
    assert int((_code_lengths(counts) * counts).sum()) == 224


def test_codes_are_at_most_16_bits():
    fibonacci = np.array([1, 1] + [0] * 30)
    for i in range(2, 32):
        fibonacci[i] = fibonacci[i - 1] + fibonacci[i - 2]
    lengths = _code_lengths(fibonacci)
    assert lengths.max() <= 16
    assert sum(2.0 ** -int(length) for length in lengths) == 1.0


@given(st.lists(st.integers(0, 255), max_size=300))
def test_any_symbols_come_back(values):
    symbols = np.array(values, np.uint8)
    context = Context(np.dtype(np.float32), (symbols.size,))
    assert Huffman().decode(Huffman().encode(symbols, context), context).tolist() == values


def test_what_is_not_smaller_is_kept_as_it_is():
    symbols = rng.integers(0, 256, 300).astype(np.uint8)
    assert len(Huffman().encode(symbols, None).data) == 301
    wide = rng.integers(0, 1 << 60, 9000).astype(np.uint64)
    assert len(Huffman().encode(wide, None).data) == 1 + wide.nbytes


@pytest.mark.parametrize("n", [50, 4200])
def test_damaged_huffman_streams_are_corrupt_or_decode(n):
    symbols = rng.geometric(0.3, n).astype(np.uint8)
    context = Context(np.dtype(np.float32), (n,))
    coded = Huffman().encode(symbols, context)
    refused = 0
    for at in {*range(20), *range(0, len(coded.data), 397)} & set(range(len(coded.data))):
        for mask in (1, 0xC0):
            harmed = bytearray(coded.data)
            harmed[at] ^= mask
            try:
                assert Huffman().decode(Coded(bytes(harmed), coded.side), context).size == n
            except CorruptError:
                refused += 1
    assert refused
    for cut in (0, 1, 2, len(coded.data) - 1):
        with pytest.raises(CorruptError):
            Huffman().decode(Coded(coded.data[:cut], coded.side), context)
    with pytest.raises(CorruptError):
        Huffman().decode(Coded(coded.data + b"\0", coded.side), context)
