"""Damaged files: the exact samples or a named error; other samples stay readable; hostile indexes are refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import zstandard

from nearzip import datasets
from nearzip.datasets import cosine_model, pixel_model
from nearzip.datasets.codecs.base import Pieces
from nearzip.datasets.codecs.registry import codec_of
from nearzip.datasets.format import pack_numbers
from nearzip.datasets.samples import Spec
from nearzip.digests import DIGEST_BYTES, digest
from nearzip.errors import CorruptError, Error, LimitError, NewerFormatError, TruncatedError
from nearzip.framing import CLOSING, FOOTER, FOOTER_BYTES, HEADER_BYTES
from tests.nzd.pictures import pictures

CODECS = ("nearzip:20", "lossless", "jpeg:80", "jpeg:80,tables=shared", "webp:80", "png", "zfp:8", "bounded")


def written(codec: str, images: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    datasets.write(out, images, list(range(len(images))), codec=codec, **options)
    return out.getvalue()


def outcome(data: bytes, samples: list[np.ndarray], labels: list[int]) -> str:
    """ "exact", or "named": anything else fails."""
    try:
        with datasets.open(data) as reader:
            found, columns = list(reader), reader.columns["label"].tolist()
    except Error as error:
        return "named" if "\n" not in str(error) else "several lines"
    assert columns == labels
    assert len(found) == len(samples)
    assert all(np.array_equal(a, b) for a, b in zip(found, samples, strict=True))
    return "exact"


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_byte_and_every_cut_gives_a_named_error(codec):
    images = pictures(3, 8, 8)
    data = written(codec, images)
    with datasets.open(data) as reader:
        samples = list(reader)
    labels = [0, 1, 2]
    for i in range(len(data)):
        for mask in (0x01, 0xFF):
            harmed = bytearray(data)
            harmed[i] ^= mask
            assert outcome(bytes(harmed), samples, labels) == "named", f"byte {i}"
    for n in range(len(data)):
        assert outcome(data[:n], samples, labels) == "named", f"cut to {n}"
    assert outcome(data + b"\0", samples, labels) == "named"
    assert outcome(data, samples, labels) == "exact"


def test_damage_in_one_group_leaves_the_others_readable():
    images = pictures(30)
    data = bytearray(written("lossless", images, group=10))
    data[HEADER_BYTES + 5] ^= 1
    with datasets.open(bytes(data)) as reader:
        with pytest.raises(CorruptError, match=r"group 0 \(samples 0 to 9\) is damaged; other samples can be read"):
            reader[3]
        assert np.array_equal(reader[10], images[10])
        assert np.array_equal(reader[29], images[29])
        assert len(reader.verify()) == 1


def test_other_files_are_told_from_damaged_ones():
    with pytest.raises(TruncatedError, match="empty"):
        datasets.open(b"")
    with pytest.raises(CorruptError, match="not a data set"):
        datasets.open(b"PK\x03\x04" + bytes(100))
    newer = bytearray(written("lossless", pictures(2)))
    newer[8] = newer[10] = 9
    newer[HEADER_BYTES - 8 : HEADER_BYTES] = digest(bytes(newer[: HEADER_BYTES - 8]))[:8]
    with pytest.raises(NewerFormatError, match="upgrade nearzip"):
        datasets.open(bytes(newer))


# ---- files with valid checksums --------------------------------------------------------------------------------


def resealed(data: bytes, change) -> bytes:
    """With another index, as somebody who can compute checksums would write it."""
    _, n_stored, _ = FOOTER.unpack(data[-FOOTER_BYTES : -FOOTER_BYTES + FOOTER.size])
    body, stored = data[: -FOOTER_BYTES - n_stored], data[-FOOTER_BYTES - n_stored : -FOOTER_BYTES]
    document = json.loads(zstandard.ZstdDecompressor().decompress(stored))
    raw = change(document)
    raw = json.dumps(document).encode() if raw is None else raw
    stored = zstandard.ZstdCompressor().compress(raw)
    lengths = FOOTER.pack(len(body) + len(stored) + FOOTER_BYTES, len(stored), len(raw))
    return body + stored + lengths + digest(data[:HEADER_BYTES], stored, lengths) + CLOSING


def with_index(**changes):
    def change(document):
        document.update(changes)

    return change


def read_all(data: bytes) -> None:
    with datasets.open(data) as reader:
        list(reader)
        reader.columns["label"]


def huge_group(document):
    document["parts"]["groups"][0] = 1 << 40


@pytest.mark.parametrize(
    "change",
    [
        with_index(samples=1 << 40), with_index(samples=0), with_index(samples=4), with_index(group=0),
        with_index(group=2), with_index(dtype="object"), with_index(rank=99), with_index(channels=2),
        with_index(shape=[1 << 30, 1 << 30, 3]), with_index(shape=[8, 8]), with_index(shape=[0, 8, 3]),
        with_index(unit=0), with_index(unit=3), with_index(codec={"name": "png"}), with_index(codec={}),
        with_index(codec={"name": "os.system"}), with_index(columns={}), with_index(parts={}), with_index(extra=1),
        with_index(columns={"label": {"dtype": "object", "shape": []}}),
        with_index(columns={"label": {"dtype": "int64", "shape": [1 << 30]}}),
        with_index(metadata={"a": 1}), with_index(classes=[1]), huge_group, lambda d: b"[" * 1000,
    ],
)  # fmt: skip
def test_hostile_indexes_are_refused(change):
    data = resealed(written("nearzip:20", pictures(3, 8, 8)), change)
    with pytest.raises(Error) as caught:
        read_all(data)
    assert "\n" not in str(caught.value)


def test_an_index_beyond_its_limit_is_not_unpacked():
    data = resealed(written("lossless", pictures(2, 8, 8)), lambda d: b" " * (1100 << 10))
    with pytest.raises(LimitError, match="index"):
        datasets.open(data)


def test_lengths_that_do_not_fill_the_file_are_refused():
    data = written("lossless", pictures(3, 8, 8))
    with datasets.open(data) as reader:
        layout = reader._layout
        at, (length, _) = layout.part_at["lengths"], layout.document.parts["lengths"]
        lengths = np.diff(layout.offsets.astype(np.int64)) // layout.document.unit
    packed = pack_numbers(lengths + 1)
    assert len(packed) == length
    data = data[:at] + packed + data[at + length :]
    data = resealed(data, lambda d: d["parts"].update(lengths=[length, digest(packed).hex()]))
    with pytest.raises(CorruptError, match="do not fill the file"):
        datasets.open(data)


# ---- native decoders on bytes that no checksum guards ----------------------------------------------------------


@pytest.mark.parametrize("codec", ["nearzip:12", "lossless", "zfp:8", "jpeg:80,tables=shared"])
def test_decoders_refuse_or_decode_any_bytes(codec):
    images = list(pictures(12, 16, 16))
    spec, chosen = Spec.of(images[0]), codec_of(codec)
    shared = chosen.learn([images], spec)
    coder = chosen.coder(shared, spec)
    streams = coder.encode(images)
    rng = np.random.default_rng(0)
    for i in range(300 if codec[0] != "z" else 20):
        harmed = bytearray(streams[i % 12])
        for _ in range(1 + i % 3):
            harmed[rng.integers(len(harmed))] ^= 1 << rng.integers(8)
        data = bytes(harmed[: rng.integers(len(harmed) + 1)] if i % 4 == 3 else harmed)
        try:
            (found,) = coder.decode(Pieces(memoryview(data), [0], [len(data)], [(16, 16, 3)]))
        except CorruptError:
            continue
        assert found.shape == (16, 16, 3)


@pytest.mark.parametrize(("module", "codec"), [(cosine_model, "nearzip:12"), (pixel_model, "lossless")])
def test_models_from_any_bytes_are_refused_or_do_no_harm(module, codec):
    images = list(pictures(12, 16, 16))
    spec, chosen = Spec.of(images[0]), codec_of(codec)
    raw = zstandard.ZstdDecompressor().decompress(chosen.learn([images], spec))
    streams = chosen.coder(chosen.learn([images], spec), spec).encode(images)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        harmed = bytearray(raw)
        harmed[rng.integers(len(harmed))] ^= 1 << rng.integers(8)
        try:
            coder = chosen.coder(zstandard.ZstdCompressor().compress(bytes(harmed)), spec)
            data = streams[0]
            coder.decode(Pieces(memoryview(data), [0], [len(data)], [(16, 16, 3)]))
        except CorruptError:
            refused += 1
    assert refused
    with pytest.raises(CorruptError):
        module.read(zstandard.ZstdCompressor().compress(raw[:-1]))
    with pytest.raises(CorruptError):
        module.read(b"not zstd")
    assert DIGEST_BYTES == 16
