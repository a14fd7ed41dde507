"""Data sets in several files: written together, read as one, each file good by itself, damage and strangers named."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from nearzip import datasets, fileio
from nearzip.cli.commands import cli
from nearzip.datasets.shard_names import MAX_SHARDS, shard_names
from nearzip.errors import CorruptError, Error, MissingFileError, NotFoundError, UsageError
from tests.nzd.pictures import pictures
from tests.nzd.test_damage import resealed

IMAGES = pictures(50)
CODECS = ("lossless", "nearzip:12", "jpeg:90,tables=shared", "bounded")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name="x.nzd", images=IMAGES, shards=4, **options):
    options = {"codec": "lossless", "group": 5, "classes": ["a", "b"], "metadata": {"from": "a test"}, **options}
    return datasets.write(name, images, np.arange(len(images)) % 7, shards=shards, **options)


@pytest.mark.parametrize("codec", CODECS)
def test_files_are_one_data_set(codec):
    written = write(codec=codec)
    assert written.files == tuple(shard_names("x.nzd", 4))
    assert written.n_bytes == sum(os.path.getsize(name) for name in written.files)
    with datasets.open("x.nzd") as reader, datasets.open(written_in_one(codec)) as one:
        assert (len(reader), reader.files, reader.n_bytes) == (50, 4, written.n_bytes)
        assert (reader.raw_bytes, reader.same_shape, reader.spec) == (one.raw_bytes, one.same_shape, one.spec)
        assert (reader.classes, reader.metadata) == (("a", "b"), {"from": "a test"})
        assert reader.columns["label"].tolist() == one.columns["label"].tolist()
        assert all(np.array_equal(a, b) for a, b in zip(reader, one, strict=True))
        order = [49, 0, 12, 13, -1, 0, 25, 24]
        found = reader.many(order)
        assert all(np.array_equal(a, b) for a, b in zip(found, one.many(order), strict=True))
        assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(found, 2))
        assert np.array_equal(np.stack(reader.coefficients(order)), np.stack(one.coefficients(order)))
        assert reader.shape(-1) == (16, 16, 3)
        assert reader.verify() == []
        with pytest.raises(IndexError, match="sample 50 of 50"):
            reader[50]


def written_in_one(codec: str) -> bytes:
    out = io.BytesIO()
    datasets.write(out, IMAGES, np.arange(50) % 7, codec=codec, group=5)
    return out.getvalue()


def test_each_file_is_a_data_set_by_itself():
    for number, name in enumerate(write().files):
        with datasets.open(name) as reader:
            assert (reader.shard.number, reader.shard.of, reader.files) == (number, 4, 1)
            first = reader.shard.first
            assert np.array_equal(np.stack(list(reader)), IMAGES[first : first + len(reader)])
            assert reader.columns["label"].tolist() == ((np.arange(len(reader)) + first) % 7).tolist()
            assert reader.verify() == []


def test_names_patterns_and_lists_stand_for_the_same():
    files = write().files
    for place in ("x.nzd", "x-*.nzd", "x-0000?-of-00004.nzd", "x-{00000..00003}-of-00004.nzd", list(files)[::-1]):
        with datasets.open(place) as reader:
            assert np.array_equal(np.stack(list(reader)), IMAGES)
    assert len(datasets.load("x.nzd")) == len(datasets.load(list(files))) == 50


def test_files_of_about_equal_size():
    written = write(shards=None, shard_size=5000, codec="png", group=3)
    sizes = [os.path.getsize(name) for name in written.files]
    assert len(sizes) > 2
    assert max(sizes) < 5000 + written.index_bytes / len(sizes) * 1.5
    with datasets.open("x.nzd") as reader:
        assert np.array_equal(np.stack(list(reader)), IMAGES)
    assert write("y.nzd", shards=None, shard_size=1 << 30).files == ("y-00000-of-00001.nzd",)
    assert len(datasets.open("y.nzd")) == 50


def test_images_of_different_sizes_and_no_columns():
    images = [pictures(1, 8 + i % 3, 9)[0] for i in range(12)]
    datasets.write("x.nzd", images, shards=5)
    with datasets.open("x.nzd") as reader:
        assert reader.same_shape is None
        assert reader.shape(4) == (9, 9, 3)
        assert all(np.array_equal(a, b) for a, b in zip(reader, images, strict=True))
        assert not reader.columns


def test_bytes_do_not_depend_on_workers():
    joblib = pytest.importorskip("joblib")
    images = pictures(300, 64, 64)
    datasets.write("x.nzd", images, codec="nearzip:20", shards=3)
    with joblib.parallel_config("threading", n_jobs=2):
        datasets.write("y.nzd", images, codec="nearzip:20", shards=3)
    for a, b in zip(shard_names("x.nzd", 3), shard_names("y.nzd", 3), strict=True):
        assert Path(a).read_bytes() == Path(b).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, "shards is a positive whole number"), ({"shards": 51}, "50 samples go into 1 to 50 files"),
        ({"shards": True}, "shards is a positive"), ({"shards": 2, "shard_size": 10}, "give one of them"),
        ({"shards": None, "shard_size": 0}, "shard_size is a positive"), ({"name": io.BytesIO()}, "a stream takes one"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(options, message, folder):
    with pytest.raises(UsageError, match=message):
        write(**options)
    assert not list(folder.iterdir())


def test_no_more_files_than_can_be_open(folder):
    images = np.zeros((MAX_SHARDS + 1, 2, 2, 3), np.uint8)
    with pytest.raises(UsageError, match="give a larger shard_size"):
        datasets.write("x.nzd", images, codec="png", group=1, shard_size=1)
    assert not list(folder.iterdir())


# ---- whole or not at all ---------------------------------------------------------------------------------------


def test_files_appear_together_or_not_at_all(folder, monkeypatch):
    images = [*IMAGES, np.zeros((4, 4, 1), np.uint8)]
    with pytest.raises(UsageError, match="sample 50"):
        write(images=images)
    assert not list(folder.iterdir())
    put, calls = fileio._put_in_place, []

    def fails_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        put(*arguments)

    monkeypatch.setattr(fileio, "_put_in_place", fails_at_the_third)
    with pytest.raises(Error, match="No space left"):
        write()
    assert not list(folder.iterdir())


def test_nothing_is_replaced_without_force(folder):
    write()
    for shards in (4, 8, None):
        with pytest.raises(UsageError, match="exists already"):
            write(shards=shards)
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("again", [4, 2, None])
@pytest.mark.parametrize("before", [4, None])
def test_with_force_the_name_stands_for_the_new_one(before, again, folder):
    write(shards=before)
    others = pictures(20, seed=5)
    write(images=others, shards=again, force=True)
    assert len(list(folder.iterdir())) == (again or 1)
    with datasets.open("x.nzd") as reader:
        assert np.array_equal(np.stack(list(reader)), others)


def test_the_files_of_another_name_are_left_alone(folder):
    write("x-y.nzd")
    write("x.nzd", shards=2)
    write("x.nzd", shards=3, force=True)
    assert len(list(folder.iterdir())) == 7


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["x.nzd", "x-*.nzd", "x-{00000..00003}-of-00004.nzd"])
def test_a_missing_file_is_named(place):
    files = write().files
    os.remove(files[2])
    with pytest.raises(MissingFileError) as caught:
        datasets.open(place)
    assert "00002-of-00004" in str(caught.value)
    assert len(datasets.open(files[1])) == 13


def test_a_name_of_nothing_is_not_found():
    for place in ("x.nzd", "x-*.nzd", "memory://nothing/x.nzd", "memory://nothing/x-*.nzd"):
        with pytest.raises(NotFoundError):
            datasets.open(place)


def test_damage_in_one_file_leaves_the_others_readable():
    files = write().files
    for at in (40, -70):  # a group; the index
        data = bytearray(Path(files[1]).read_bytes())
        data[at] ^= 1
        Path(files[1]).write_bytes(bytes(data))
        with datasets.open("x.nzd") as reader:
            assert len(reader) == 50
            with pytest.raises(CorruptError, match=r"x-00001-of-00004\.nzd.*can be read"):
                reader[12]
            rest = [*range(12), *range(25, 50)]
            assert all(np.array_equal(a, IMAGES[i]) for a, i in zip(reader.many(rest), rest, strict=True))
            assert len(reader.verify()) == 1
    for name in files:
        Path(name).write_bytes(b"")
    with pytest.raises(CorruptError, match="empty"):
        datasets.open("x.nzd")


def test_flipped_bytes_of_a_file_are_named_and_leave_the_rest():
    files = write(images=pictures(6, 8, 8), shards=3, group=2).files
    data = Path(files[1]).read_bytes()
    images = pictures(6, 8, 8)
    for i in range(0, len(data), 5):
        harmed = bytearray(data)
        harmed[i] ^= 0x41
        Path(files[1]).write_bytes(bytes(harmed))
        with datasets.open("x.nzd") as reader:
            assert np.array_equal(np.stack(reader.many([0, 1, 4, 5])), images[[0, 1, 4, 5]])
            assert reader.verify(), f"byte {i}"


def test_strangers_are_named():
    files = write().files
    write("y.nzd", images=pictures(50, seed=3))
    write("z.nzd", shards=None)
    own = Path(files[1]).read_bytes()
    for stranger, said in (("y-00001-of-00004.nzd", "of another data set"), ("z.nzd", "a data set of its own")):
        Path(files[1]).write_bytes(Path(stranger).read_bytes())
        with pytest.raises(CorruptError, match=said):
            datasets.open("x.nzd")
    Path(files[1]).write_bytes(Path(files[0]).read_bytes())
    with pytest.raises(UsageError, match="is the same part"):
        datasets.open("x.nzd")
    Path(files[1]).write_bytes(own)
    write("x.nzd-other.nzd", shards=2)
    assert len(datasets.open("x.nzd")) == 50
    Path("x-00003-of-00009.nzd").touch()
    with pytest.raises(UsageError, match="files of 4 and 9 are there"):
        datasets.open("x.nzd")


def set_to(**changes):
    def change(document):
        document["set"].update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_to(number=4), set_to(number=-1), set_to(samples=[]), set_to(samples=[50]), set_to(samples=[1 << 40] * 4),
        set_to(samples=[12] * 1000), set_to(samples="x"), set_to(id="00"), set_to(id=3), set_to(extra=1),
        lambda d: d.pop("set") and None, lambda d: d.update(set=None),
    ],
)  # fmt: skip
def test_hostile_descriptions_are_refused(change):
    data = Path(write().files[0]).read_bytes()
    with pytest.raises(CorruptError, match="index"):
        datasets.open(resealed(data, change))


def test_a_file_that_contradicts_the_others_is_refused():
    files = write().files
    data = Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(resealed(data, lambda d: d.update(classes=["b", "a"])))
    with pytest.raises(CorruptError, match="contradicts"):
        datasets.open("x.nzd")


# ---- elsewhere -------------------------------------------------------------------------------------------------


def test_urls_of_several_files():
    for name in write().files:
        with fsspec.open(f"memory://sets/{name}", "wb") as stream:
            stream.write(Path(name).read_bytes())
    for place in ("memory://sets/x.nzd", "memory://sets/x-*.nzd", "memory://sets/x-{00000..00003}-of-00004.nzd"):
        with datasets.open(place) as reader:
            assert np.array_equal(np.stack(list(reader)), IMAGES)
    fsspec.filesystem("memory").rm("/sets/x-00003-of-00004.nzd")
    with pytest.raises(MissingFileError, match="x-00003-of-00004"):
        datasets.open("memory://sets/x.nzd")


def test_readers_are_sent_to_processes_and_load_batches():
    torch = pytest.importorskip("torch")
    write()
    reader = datasets.open("x.nzd")
    assert np.array_equal(pickle.loads(pickle.dumps(reader))[30], IMAGES[30])  # noqa: S301 - our own
    data = pickle.loads(pickle.dumps(datasets.Dataset("x.nzd")))  # noqa: S301
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, shuffle=True)
    found = [
        (image.numpy(), int(label)) for images, labels in loader for image, label in zip(images, labels, strict=True)
    ]
    assert len(found) == 50
    assert sorted(label for _, label in found) == sorted(i % 7 for i in range(50))
    with pytest.raises(UsageError, match="stream"):
        pickle.dumps(datasets.open([io.BytesIO(Path(name).read_bytes()) for name in shard_names("x.nzd", 4)]))


def test_exported_as_if_it_were_one_file():
    write()
    with datasets.open("x.nzd") as reader:
        assert datasets.export(reader, "x.npz") == 50
    assert np.array_equal(np.load("x.npz")["images"], IMAGES)


def run(*arguments: object):
    return CliRunner().invoke(cli, ["dataset", *map(str, arguments)])


def test_in_the_shell():
    np.savez("x.npz", images=IMAGES, labels=np.arange(50))
    document = json.loads(run("compress", "x.npz", "-o", "x.nzd", "--shards", 3, "--json").stdout)
    assert document["files"] == shard_names("x.nzd", 3)
    shown = json.loads(run("inspect", "x.nzd", "--verify", "--json").stdout)
    assert (shown["files"], shown["shard"], shown["samples"], shown["damaged"]) == (3, None, 50, [])
    assert json.loads(run("inspect", document["files"][1], "--json").stdout)["shard"] == 1
    assert run("export", "x.nzd", "-o", "back.npz").exit_code == 0
    assert np.array_equal(np.load("back.npz")["images"], IMAGES)
    assert "x-00000-of-00002.nzd and 1 more" in run("compress", "x.nzd", "-o", "x.nzd", "--shards", 2, "--force").stdout
    assert np.array_equal(np.stack(list(datasets.open("x.nzd"))), IMAGES)
    assert run("compress", "x.npz", "-o", "y.nzd", "--shard-size", "10kB").exit_code == 0
    assert run("compress", "x.npz", "-o", "-", "--shards", 2).exit_code == 2
    Path("x-00001-of-00002.nzd").write_bytes(b"")
    done = run("inspect", "x.nzd")
    assert (done.exit_code, "x-00001-of-00002.nzd: the file is empty" in done.stderr) == (0, True)
    os.remove("x-00001-of-00002.nzd")
    done = run("inspect", "x.nzd")
    assert (done.exit_code, len(done.stderr.strip().splitlines())) == (10, 1)


@pytest.mark.parametrize("name", ["plain", "plain.dat", "x[1].nzd", "x{1..2}.nzd"])
def test_opened_by_the_name_that_it_was_written_under(name):
    write(name)
    with datasets.open(name) as reader:
        assert (reader.files, len(reader)) == (4, 50)


def test_files_of_the_same_images_with_other_labels_are_strangers():
    write("x.nzd")
    datasets.write(
        "y.nzd", IMAGES, np.arange(50) % 7 + 1, shards=4, codec="lossless", group=5, classes=["a", "b"],
        metadata={"from": "a test"},
    )  # fmt: skip
    os.replace("y-00001-of-00004.nzd", "x-00001-of-00004.nzd")
    with pytest.raises(CorruptError, match="of another data set"):
        datasets.open("x.nzd")


def test_files_smaller_than_a_group():
    written = datasets.write("x.nzd", IMAGES, codec="lossless", shard_size=2000)
    with datasets.open("x.nzd") as reader:
        assert np.array_equal(np.stack(list(reader)), IMAGES)
    assert len(written.files) > 4
    for name in written.files:
        with datasets.open(name) as reader:
            assert reader.n_bytes - reader.index_bytes <= 2000 or len(reader) == 1
