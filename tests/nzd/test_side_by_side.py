"""Many images decoded side by side: the pixels of one after the other, and the same refusals."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

import nearzip._core as _core
from nearzip import datasets
from nearzip.datasets.codecs.base import Pieces
from nearzip.datasets.codecs.registry import codec_of
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError
from tests.nzd.pictures import pictures

CODECS = ("nearzip:4", "nearzip:20", "nearzip:120", "lossless")


@pytest.fixture(params=[True, False], ids=["vectors", "plain"])
def _vectors(request):
    _core.allow_vectors(request.param)
    yield
    _core.allow_vectors(True)


def reader_of(images, codec: str, **options) -> datasets.Reader:
    out = io.BytesIO()
    datasets.write(out, images, codec=codec, **options)
    return datasets.open(out.getvalue())


@pytest.mark.usefixtures("_vectors")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 70, 3), (1, 1, 1), (8, 8, 2), (23, 5, 4)])
def test_a_batch_is_what_its_images_are(codec, shape):
    images = np.random.default_rng(0).integers(0, 256, (21, *shape), dtype=np.uint8)
    images[:12] = np.resize(pictures(12, *shape[:2]), (12, *shape))
    images[3] = 255
    reader = reader_of(images, codec)
    order = [*range(20, -1, -1), 3, 3]
    alone = [reader[i] for i in range(len(images))]
    for n in (2, 4, 15, 16, 17, 23):
        for i, image in zip(order[:n], reader.many(order[:n]), strict=True):
            assert np.array_equal(image, alone[i])
    if codec == "lossless":
        assert np.array_equal(np.stack(alone), images)
    else:
        once = [reader.coefficients([i])[0] for i in range(len(images))]
        assert np.array_equal(np.stack(reader.coefficients(order)), np.stack([once[i] for i in order]))


@pytest.mark.parametrize("codec", CODECS)
def test_images_of_many_shapes_come_in_their_order(codec):
    rng = np.random.default_rng(1)
    images = [pictures(1, *(int(x) for x in rng.integers(1, 30, 2)))[0] for _ in range(60)]
    images += list(pictures(40, 16, 16))
    reader = reader_of(images, codec, group=7)
    order = rng.permutation(100).tolist()
    for i, image in zip(order, reader.many(order), strict=True):
        assert np.array_equal(image, reader[i])


@pytest.mark.usefixtures("_vectors")
@pytest.mark.parametrize("codec", CODECS)
def test_a_harmed_image_is_refused_in_company_as_alone(codec):
    images = list(pictures(20, 24, 16))
    spec, chosen = Spec.of(images[0]), codec_of(codec)
    coder = chosen.coder(chosen.learn([images], spec), spec)
    streams = coder.encode(images)
    rng = np.random.default_rng(2)
    outcomes = set()
    for i in range(150):
        harmed = bytearray(streams[i % 20])
        harmed[rng.integers(len(harmed))] ^= 1 << rng.integers(8)
        if i % 3 == 0:
            del harmed[rng.integers(len(harmed)) :]
        together = [*streams[:7], bytes(harmed), *streams[7:14]]
        alone = decoded(coder, [bytes(harmed)], (24, 16, 3))
        found = decoded(coder, together, (24, 16, 3))
        assert (alone is None) == (found is None)
        outcomes.add(alone is None)
        if alone is not None and found is not None:
            assert np.array_equal(found[7], alone[0])
            assert np.array_equal(found[6], decoded(coder, streams[6:7], (24, 16, 3))[0])
    assert True in outcomes


def decoded(coder, streams, shape) -> list[np.ndarray] | None:
    stops = np.cumsum([len(s) for s in streams]).tolist()
    try:
        return coder.decode(Pieces(memoryview(b"".join(streams)), [0, *stops[:-1]], stops, [shape] * len(streams)))
    except CorruptError:
        return None


def test_of_several_groups_the_damaged_one_is_named(tmp_path):
    images = pictures(40, 16, 16)
    path = tmp_path / "some.nzd"
    datasets.write(path, images, codec="nearzip:20", group=5)
    with datasets.open(path) as reader:
        begin = int(reader._layout.offsets[17])
    data = bytearray(path.read_bytes())
    data[begin] ^= 4
    with datasets.open(bytes(data)) as reader, pytest.raises(CorruptError, match="group 3"):
        reader.many(range(0, 40, 3))


def test_bytes_that_no_checksum_refuses_are_named_by_their_group(monkeypatch):
    images = pictures(40, 16, 16)
    reader = reader_of(images, "nearzip:20", group=5)
    right = type(reader)._group

    def group(self, number):
        data = right(self, number)
        return memoryview(bytes(len(data))) if number == 4 else data

    monkeypatch.setattr(type(reader), "_group", group)
    with pytest.raises(CorruptError, match="group 4: image"):
        reader.many(range(0, 40, 3))
    assert len(reader.many(range(20))) == 20


def test_large_requests_are_decoded_in_parts(monkeypatch):
    monkeypatch.setattr("nearzip.datasets.reading._TOGETHER", 6)
    images = pictures(40, 16, 16)
    reader = reader_of(images, "lossless", group=4)
    order = np.random.default_rng(3).permutation(40).tolist()
    assert np.array_equal(np.stack(reader.many(order)), images[order])


def test_few_samples_of_many_groups_take_no_more_than_their_bytes(tmp_path):
    path = tmp_path / "many.nzd"
    datasets.write(
        path, np.random.default_rng(4).integers(0, 256, (3000, 16, 16, 1), np.uint8), codec="lossless", group=100
    )
    with datasets.open(path) as reader:
        some = range(0, 3000, 100)
        reader.many([0])  # the index and the model
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("nearzip.datasets.reading._KEPT_BYTES", 0)
            tracemalloc.start()
            try:
                reader.many(some)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert path.stat().st_size > 700_000
    assert peak < 200_000
