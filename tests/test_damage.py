"""Damaged archives: every byte changed, every length cut, blocks swapped. A named error or the right tensors."""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import os
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import CorruptError, Error, TruncatedError
from nearzip.recipes import recipe_types
from nearzip.testing import Outcome, examine, harm, seal, unseal
from nearzip.testing.damage import same_tensors

#: Bounds to make archives with; a method that cannot promise one is skipped there.
BOUNDS = (None, nz.Lossless(), nz.Absolute(0.01), nz.PointwiseRelative(0.01), nz.Rms(0.01))
FLOATS = ("float32", "bfloat16", "float64", "float16", "float8_e5m2")
MOST_BYTES = 2048


@dataclass(frozen=True)
class Sample:
    """One small archive, what it holds and what it was made against."""

    name: str
    data: bytes
    restored: dict[str, np.ndarray]
    base: dict[str, np.ndarray] | None


def tensors(dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A version and the one before it: small tensors that share a block, a NaN to patch, an alias, odd shapes."""
    rng = np.random.default_rng(5)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    old = {"w": rng.normal(size=(4, 6)).astype(kind), "b": rng.normal(size=5).astype(kind), "n": np.arange(3)}
    new = {name: value.copy() for name, value in old.items()}
    new["w"] = (old["w"].astype(np.float64) * 1.02).astype(kind)
    new["w"][1, 2] = np.nan
    new["tied"] = new["w"].copy()
    new["n"][1] = -7
    new["scalar"] = np.array(0.25, kind)
    new["empty"] = np.zeros((0, 2), kind)
    new["flag"] = np.array([True, False])
    return old, new


def installed() -> list[str]:
    """Methods whose libraries are here; the sanitizers' environment has only what every user has."""
    return [name for name, kind in recipe_types().items() if all(map(importlib.util.find_spec, kind.needs))]


@functools.cache
def samples() -> tuple[Sample, ...]:
    found = []
    for i, method in enumerate(installed()):
        for j, bound in enumerate(BOUNDS):
            # Every method with every bound; the dtypes take turns, and the first method sees all of them.
            dtypes = FLOATS if not i and j in (1, 3) else (FLOATS[(i + j) % len(FLOATS)],)
            for dtype in dtypes:
                old, new = tensors(dtype)
                for base in (None, old):
                    try:
                        archive = nz.compress(new, base=base, method=method, bound=bound, threads=1)
                    except nz.errors.UsageError:
                        continue  # a bound that this method cannot promise
                    if base is not None and archive.base_id is None:
                        continue  # the method makes nothing of a base
                    name = f"{method}-{bound}-{dtype}-{'base' if base else 'alone'}"
                    found.append(Sample(name, archive.to_bytes(), archive.restored, base))
    return tuple(found)


def each_sample(test):
    return pytest.mark.parametrize("sample", samples(), ids=lambda s: s.name)(test)


def outcomes(sample: Sample, every: int) -> collections.Counter[Outcome]:
    counts: collections.Counter[Outcome] = collections.Counter()
    for damage in harm(sample.data, every):
        outcome = examine(damage.data, sample.restored, sample.base)
        assert outcome in (Outcome.REFUSED, Outcome.RIGHT), f"{sample.name}: {damage.what}: {outcome.value}"
        counts[outcome] += 1
    return counts


def test_samples_cover_every_method_and_are_small() -> None:
    assert {s.name.split("-None-")[0] for s in samples() if "-None-" in s.name} == set(installed())
    assert max(len(s.data) for s in samples()) <= MOST_BYTES
    assert all(same_tensors(nz.decompress(s.data, s.base), s.restored) for s in samples())
    assert any(unseal(s.data)[0]["aliases"] for s in samples())


@each_sample
def test_damage_is_an_error_or_the_right_answer(sample: Sample) -> None:
    # Thinned out: the long form tries every change of every byte.
    outcomes(sample, every=13)


@pytest.mark.long
def test_every_change_of_every_byte(tmp_path: Path) -> None:
    """All eight single-bit flips, 00 and FF of every byte, and every length. NEARZIP_RESULTS: where to write counts."""
    began = time.process_time()
    rows = []
    for sample in samples():
        counts = outcomes(sample, every=1)
        rows.append({"file": sample.name, "bytes": len(sample.data)} | {o.name.lower(): n for o, n in counts.items()})
    total = sum(row.get("refused", 0) + row.get("right", 0) for row in rows)
    summary = {"files": len(rows), "decodes": total, "cpu_seconds": round(time.process_time() - began, 1), "rows": rows}
    folder = Path(os.environ.get("NEARZIP_RESULTS", tmp_path))
    (folder / "damage.json").write_text(json.dumps(summary, indent=1) + "\n")
    assert sum(row.get("right", 0) for row in rows) == 0  # the checksums leave no byte out


@each_sample
def test_each_length_cut_is_named_so(sample: Sample) -> None:
    for length in range(0, len(sample.data), 41):
        with pytest.raises(CorruptError):
            nz.decompress(sample.data[:length], sample.base)
    for length in (0, 10, 60, len(sample.data) - 1):
        with pytest.raises(TruncatedError):
            nz.decompress(sample.data[:length], sample.base)


# ---- blocks that moved -----------------------------------------------------------------------------------------


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    """Offset and length of each block."""
    document, _ = unseal(data)
    found, at = [], 24
    for segment in document["segments"]:
        for block in segment["blocks"]:
            found.append((at, block[1]))
            at += block[1]
    return found


@each_sample
def test_swapped_blocks_are_noticed(sample: Sample) -> None:
    places = blocks_of(sample.data)
    contents = [sample.data[at : at + n] for at, n in places]
    for i in range(len(places)):
        for j in range(i + 1, len(places)):
            if contents[i] == contents[j]:
                continue
            swapped = list(contents)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            data = sample.data[:24] + b"".join(swapped) + sample.data[24 + sum(map(len, contents)) :]
            with pytest.raises(CorruptError):
                nz.decompress(data, sample.base)


def test_a_block_of_another_file_is_noticed() -> None:
    """Same tensor, same place, same length, good checksums of its own: still not what the index was made for."""
    one = nz.compress({"w": np.arange(64, dtype=np.float32)}, method="nearzip")
    other = nz.compress({"w": np.arange(64, dtype=np.float32) + 1}, method="nearzip")
    (at, n), (_, m) = blocks_of(one.to_bytes())[0], blocks_of(other.to_bytes())[0]
    n = min(n, m)
    data = bytearray(one.to_bytes())
    data[at : at + n] = other.to_bytes()[at : at + n]
    with pytest.raises(CorruptError, match="'w'"):
        nz.decompress(bytes(data))


@each_sample
def test_blocks_under_a_resealed_index_do_not_decode_to_something_else(sample: Sample) -> None:
    """Blocks swapped together with their entries: the segments' own checksums are of decoded values."""
    document, blocks = unseal(sample.data)
    segments = document["segments"]
    for i in range(len(segments) - 1):
        changed = json.loads(json.dumps(document))
        one, other = changed["segments"][i], changed["segments"][i + 1]
        if one["digest"] == other["digest"]:
            continue
        one["digest"], other["digest"] = other["digest"], one["digest"]
        with pytest.raises(Error):
            nz.decompress(seal(changed, blocks), sample.base)


# ---- what else stays readable ----------------------------------------------------------------------------------


def each_damaged_block(sample: Sample):
    """Each segment with one of its bytes changed: names of its tensors (aliases, too), and the file."""
    document, _ = unseal(sample.data)
    names = [name for name, _, _ in document["tensors"]]
    at = 24
    for segment in document["segments"]:
        hit = {names[i] for i in segment["tensors"]}
        hit |= {names[int(a)] for a, target in document["aliases"].items() if names[target] in hit}
        for block in segment["blocks"]:
            if block[1]:
                data = bytearray(sample.data)
                data[at + block[1] // 2] ^= 0x10
                yield hit, bytes(data)
            at += block[1]


@each_sample
def test_damage_names_its_tensors_and_leaves_the_others(sample: Sample) -> None:
    for hit, data in each_damaged_block(sample):
        with nz.open(data, base=sample.base) as reader:
            assert set(reader.damage()) == hit
            for name in reader:
                if name in hit:
                    with pytest.raises(CorruptError, match="damaged"):
                        reader[name]
                else:
                    assert same_tensors({name: reader[name]}, {name: sample.restored[name]})
        with pytest.raises(CorruptError) as raised:
            nz.decompress(data, sample.base)
        assert any(repr(name) in str(raised.value) for name in hit)


@pytest.mark.parametrize("method", installed())
def test_keep_going_leaves_out_exactly_the_damaged(method: str, tmp_path: Path) -> None:
    _, new = tensors("float32")
    archive = nz.compress(new, method=method, threads=1)
    sample = Sample(method, archive.to_bytes(), archive.restored, None)
    for i, (hit, data) in enumerate(each_damaged_block(sample)):
        source, target = tmp_path / f"{i}.nz", tmp_path / f"{i}.npz"
        source.write_bytes(data)
        with pytest.raises(CorruptError):
            nz.decompress_file(source, target)
        assert not target.exists()
        left_out = nz.decompress_file(source, target, keep_going=True)
        assert set(left_out) == hit
        with np.load(target) as read:
            kept = {name: read[name] for name in read.files}
        right = {name: value for name, value in archive.restored.items() if name not in hit}
        assert same_tensors(dict(sorted(kept.items())), dict(sorted(right.items())))


def test_damage_takes_no_memory() -> None:
    sample = samples()[0]
    examine(sample.data, sample.restored, sample.base)
    tracemalloc.start()
    try:
        for damage in harm(sample.data, every=101):
            examine(damage.data, sample.restored, sample.base)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
