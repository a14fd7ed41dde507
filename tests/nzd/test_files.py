"""`.nzd` files: what goes in comes out, any sample alone, by every codec, in workers and from elsewhere."""

from __future__ import annotations

import io
import itertools
import pickle
import threading

import fsspec
import numpy as np
import pytest

from nearzip import datasets
from nearzip.datasets.cosines import coefficients, pixels_of
from nearzip.errors import LimitError, NotFoundError, UnknownMethodError, UsageError
from nearzip.limits import Limits
from tests.nzd.pictures import pictures

EXACT = ("lossless", "png", "bounded")
LOSSY = (
    "nearzip:8", "nearzip:12,rounding=0.5", "jpeg:95,chroma=4:4:4", "jpeg:95,chroma=4:4:4,tables=shared", "webp:95",
    "zfp:12", "zfp:12,values=int32", "zfp:12,dimensions=3", "zfp:rate=8", "zfp:accuracy=2",
)  # fmt: skip


def written(images, labels=None, **options) -> bytes:
    out = io.BytesIO()
    datasets.write(out, images, labels, **options)
    return out.getvalue()


@pytest.mark.parametrize("codec", EXACT)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 1), (3, 20)])
def test_codecs_without_loss_are_exact(codec, channels, size):
    images = pictures(7, *size, channels)
    with datasets.open(written(images, codec=codec)) as reader:
        assert np.array_equal(np.stack(list(reader)), images)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 3)])
def test_codecs_with_loss_are_near(codec, size):
    images = pictures(9, *size)
    with datasets.open(written(images, range(9), codec=codec)) as reader:
        restored = np.stack(list(reader))
        assert restored.shape == images.shape
        assert np.abs(restored.astype(float) - images).mean() < 8
        assert reader.columns["label"].tolist() == list(range(9))


@pytest.mark.parametrize("codec", ["nearzip:16", *EXACT])
def test_any_sample_is_read_alone_and_in_any_order(codec):
    images = pictures(41)
    with datasets.open(written(images, codec=codec, group=8)) as reader:
        whole = list(reader)
        assert reader.groups == 6
        for i in (40, 0, 17, -1):
            assert np.array_equal(reader[i], whole[i])
        order = np.random.default_rng(0).permutation(41).tolist()
        assert all(np.array_equal(a, whole[i]) for a, i in zip(reader.many(order), order, strict=True))
        with pytest.raises(IndexError):
            reader[41]


@pytest.mark.parametrize("codec", [*EXACT, *LOSSY])
@pytest.mark.parametrize("same", [True, False])
def test_every_sample_is_an_array_of_its_own(codec, same):
    images = list(pictures(12)) if same else [pictures(1, 8 + i % 3, 9)[0] for i in range(12)]
    with datasets.open(written(images, codec=codec, group=4)) as reader:
        expected = [image.copy() for image in reader]
        for read in (reader.many, reader.coefficients):
            found = read([1, 1, 2, -1, 11, 1])
            assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(found, 2))
            for sample in found:
                sample[:] = 0
        assert all(np.array_equal(a, b) for a, b in zip(reader, expected, strict=True))


def test_images_of_different_sizes():
    images = [pictures(1, h, w)[0] for h, w in ((8, 8), (30, 5), (17, 33), (8, 8))]
    for codec in ("lossless", "nearzip:6", "webp:90", "bounded"):
        with datasets.open(written(images, codec=codec)) as reader:
            assert reader.same_shape is None
            assert [sample.shape for sample in reader] == [image.shape for image in images]
            if codec in EXACT:
                assert all(np.array_equal(a, b) for a, b in zip(reader, images, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint16", "int32"])
def test_other_arrays_are_exact_or_within_their_bound(dtype):
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 300, (20, 6, 5))).astype(dtype)
    with datasets.open(written(values)) as reader:
        assert np.array_equal(np.stack(list(reader)), values)
    with datasets.open(written(values, codec="bounded:abs:0.5")) as reader:
        assert np.abs(np.stack(list(reader)).astype(float) - values).max() <= 0.5


def test_columns_of_numbers_rows_and_texts():
    columns = {"box": np.arange(20.0).reshape(5, 4), "name": list("abcde"), "big": np.array([1, -2, 3, 4, 2**40])}
    data = written(pictures(5), [3, 1, 4, 1, 5], columns=columns, classes=["x", "y"], metadata={"from": "a test"})
    with datasets.open(data) as reader:
        assert reader.columns["label"].tolist() == [3, 1, 4, 1, 5]
        assert np.array_equal(reader.columns["box"], columns["box"])
        assert reader.columns["name"] == columns["name"]
        assert reader.columns["big"].tolist() == columns["big"].tolist()
        assert (reader.classes, reader.metadata) == (("x", "y"), {"from": "a test"})
        with pytest.raises(NotFoundError, match="no column 'other'; it has"):
            reader.columns["other"]


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (pictures(3), {"labels": [1, 2]}, "column 'label' has 2 values for 3 samples"),
        (pictures(3), {"labels": [1, None, 2]}, "no value for sample 1"),
        (np.zeros((0, 4, 4), np.uint8), {}, "no sample"),
        ([pictures(1)[0], np.zeros((4, 4), np.uint8)], {}, "sample 1 is an image of 1 channel"),
        (np.zeros((2, 3, 3), complex), {}, "complex128"),
        (np.zeros((2, 0, 3, 3), np.uint8), {}, "of the shape .0, 3, 3. holds no value"),
        (np.zeros((2, 0), np.float32), {}, "holds no value"),
        ([pictures(1)[0], np.zeros((0, 4, 3), np.uint8)], {}, "of the shape .0, 4, 3. holds no value"),
        (np.zeros((2, 3), np.float32), {"codec": "jpeg:75"}, "jpeg codes images of 1 or 3 channels"),
        (np.zeros((2, 3), np.float32), {"codec": "nearzip"}, "take 'bounded'"),
        (pictures(2), {"codec": "jpeg:101"}, "quality lies between 1 and 100"),
        (pictures(2), {"codec": "jpeg:75,colour=1"}, "no parameter 'colour'"),
        (pictures(2), {"codec": "zfp:rate=0.5"}, "crashes the library"),
        (pictures(2), {"codec": "zfp:rate=1,precision=3"}, "one of precision, rate and accuracy"),
        (pictures(2), {"codec": "zfp:accuracy=1,values=int32"}, "ignores the accuracy"),
        (pictures(2), {"group": 0}, "group is a number"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(images, more, message):
    with pytest.raises(UsageError, match=message) as caught:
        written(images, **more)
    assert "\n" not in str(caught.value)


def test_unknown_codecs_are_named():
    with pytest.raises(UnknownMethodError, match="no codec 'mp3'"):
        written(pictures(2), codec="mp3")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.nzd"
    images = [*pictures(3), np.zeros((4, 4, 1), np.uint8)]
    with pytest.raises(UsageError, match="sample 3"):
        datasets.write(path, images)
    assert not list(tmp_path.iterdir())
    datasets.write(path, pictures(3))
    with pytest.raises(UsageError, match="exists already"):
        datasets.write(path, pictures(3))


def test_bytes_do_not_depend_on_workers(tmp_path):
    joblib = pytest.importorskip("joblib")
    images = pictures(300, 64, 64)
    one = written(images, codec="nearzip:20")
    with joblib.parallel_config("threading", n_jobs=2):
        assert written(images, codec="nearzip:20") == one


@pytest.mark.parametrize("codec", ["nearzip:20", "lossless", "jpeg:80,tables=shared", "zfp:12", "bounded"])
def test_encoding_runs_on_dask(dask_workers, codec):
    joblib = pytest.importorskip("joblib")
    images = pictures(300, 64, 64)
    with joblib.parallel_config("sequential"):
        one = written(images, range(300), codec=codec)
    before = len(dask_workers.get_task_stream())
    assert written(images, range(300), codec=codec) == one
    assert len(dask_workers.get_task_stream()) > before
    assert np.array_equal(datasets.open(one)[299], list(datasets.open(one))[299])


def test_errors_of_workers_on_dask_are_named(dask_workers):
    images = [*pictures(300, 64, 64), np.zeros((4, 4, 1), np.uint8)]
    with pytest.raises(UsageError, match="sample 300"):
        written(images, codec="png")


def test_remote_files_are_read_by_ranges(tmp_path):
    data = written(pictures(600), codec="lossless", group=20)
    with fsspec.open("memory://ranges/x.nzd", "wb") as stream:
        stream.write(data)
    reader = datasets.open("memory://ranges/x.nzd")
    read = []
    source = reader._source
    original = source.read
    source.read = lambda offset, length: read.append(length) or original(offset, length)
    assert np.array_equal(reader[333], pictures(600)[333])
    assert sum(read) < len(data) / 4


def test_readers_are_shared_by_threads_and_sent_to_processes(tmp_path):
    path = tmp_path / "x.nzd"
    images = pictures(64)
    datasets.write(path, images, codec="lossless", group=4)
    reader = datasets.open(path)
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own
    assert np.array_equal(copy[5], images[5])
    failures = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).integers(0, 64, 100)
        failures.extend(i for i in order if not np.array_equal(reader[i], images[i]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_coefficients_of_a_file_are_those_that_its_pixels_come_from():
    images = pictures(5, 19, 24)
    with datasets.open(written(images, codec="nearzip:10")) as reader:
        found = np.stack(reader.coefficients(range(5)))
        pixels = np.clip(np.rint(pixels_of(found, 19, 24, True)), 0, 255)
        assert np.abs(pixels - np.stack(list(reader))).max() <= 1
    with datasets.open(written(images, codec="png")) as reader:
        assert np.allclose(np.stack(reader.coefficients(range(5))), coefficients(images, True))


def test_large_samples_need_the_callers_word():
    data = written(np.zeros((1, 600, 600, 3), np.uint8), codec="nearzip:40")
    with (
        datasets.open(data, Limits(output_bytes=1000)) as reader,
        pytest.raises(LimitError, match="takes 1080000 bytes"),
    ):
        reader[0]


def test_shared_contexts_make_files_smaller_than_each_image_alone():
    images = pictures(400, seed=3)
    whole = len(written(images, codec="nearzip:16"))
    jpeg = len(written(images, codec="jpeg:50,chroma=4:4:4,tables=shared"))
    assert whole < jpeg


@pytest.mark.parametrize("codec", ["nearzip:0.5", "nearzip:40", "lossless"])
def test_extreme_images(codec):
    rng = np.random.default_rng(0)
    images = np.zeros((12, 24, 24, 3), np.uint8)
    images[1] = 255
    images[2, ::2] = 255
    images[3, :, ::2] = 255
    images[4, ::2, ::2] = images[4, 1::2, 1::2] = 255
    images[5:] = rng.choice([0, 255], (7, 24, 24, 3))
    with datasets.open(written(images, codec=codec)) as reader:
        restored = np.stack(list(reader)).astype(int)
    assert np.abs(restored - images).max() <= (0 if codec == "lossless" else 3 if codec == "nearzip:0.5" else 140)
