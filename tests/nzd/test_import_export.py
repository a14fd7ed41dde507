"""Data sets of other formats: what is read, what is refused, and the way back."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest

from nearzip import datasets
from nearzip.datasets.images import encode_image, read_image
from nearzip.errors import CorruptError, MissingFileError, UsageError
from tests.nzd.pictures import pictures

Image = pytest.importorskip("PIL.Image")


def png(pixels: np.ndarray) -> bytes:
    return encode_image(pixels, "PNG")


def folder_of_images(path, images, classes=("cat", "dog")):
    for i, image in enumerate(images):
        place = path / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03d}.png").write_bytes(png(image))
    return path


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


# ---- images ----------------------------------------------------------------------------------------------------


def saved(image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_usual_modes_become_arrays():
    rgb = pictures(1, 7, 9)[0]
    assert np.array_equal(read_image(png(rgb), "a"), rgb)
    assert read_image(png(rgb[..., :1]), "a").shape == (7, 9, 1)
    assert read_image(png(pictures(1, 7, 9, 4)[0]), "a").shape == (7, 9, 4)
    assert read_image(saved(Image.fromarray(rgb).convert("1"), "PNG"), "a").shape == (7, 9, 1)
    assert read_image(saved(Image.fromarray(rgb).convert("P"), "PNG"), "a").shape == (7, 9, 3)
    assert read_image(png(rgb), "a", mode="L").shape == (7, 9, 1)
    deep = (np.arange(63, dtype=np.uint16) * 1000).reshape(7, 9)
    assert np.array_equal(read_image(saved(Image.fromarray(deep), "PNG"), "a"), deep)


def test_odd_images_get_one_clear_line():
    rgb = Image.fromarray(pictures(1, 32, 32)[0])
    cmyk = saved(rgb.convert("CMYK"), "JPEG")
    animated = saved(rgb, "GIF", save_all=True, append_images=[rgb.transpose(0)])
    whole = saved(rgb, "JPEG")
    cases = {
        "has the mode CMYK": (UsageError, cmyk),
        "animation of 2 frames": (UsageError, animated),
        "cut short or damaged": (CorruptError, whole[: len(whole) // 2]),
        "no image": (CorruptError, b"GIF but no"),
    }
    for message, (kind, data) in cases.items():
        with pytest.raises(kind, match=message) as caught:
            read_image(data, "x.jpg")
        assert str(caught.value).startswith("x.jpg: ")
        assert "\n" not in str(caught.value)
    assert read_image(cmyk, "x.jpg", mode="RGB").shape == (32, 32, 3)
    with pytest.raises(UsageError, match="mode is one of"):
        read_image(whole, "x.jpg", mode="HSV")


# ---- reading ---------------------------------------------------------------------------------------------------


def test_arrays(tmp_path):
    images = pictures(5)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(5))
    assert np.array_equal(datasets.load(tmp_path / "x.npy")[3], images[3])
    found = datasets.load(tmp_path / "x.npz")
    assert found.columns["label"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="no array 'pictures'; it has images, labels"):
        datasets.load(tmp_path / "x.npz", images="pictures")
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(CorruptError):
        datasets.load(tmp_path / "objects.npy")


def test_folders_of_images(tmp_path):
    images = pictures(6)
    found = datasets.load(folder_of_images(tmp_path / "x", images))
    assert found.classes == ("cat", "dog")
    assert found.columns["label"] == [0, 0, 0, 1, 1, 1]
    assert found.columns["name"][0] == "cat/000.png"
    assert np.array_equal(found[4], images[3])
    (tmp_path / "x" / "stray.png").write_bytes(png(images[0]))
    with pytest.raises(UsageError, match=r"'stray\.png' has no label"):
        datasets.load(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        datasets.load(tmp_path / "empty")


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    images, labels = pictures(4, 6, 5, 1)[..., 0], np.arange(4, dtype=np.uint8)
    end, pack = (".gz", gzip.compress) if packed else ("", bytes)
    (tmp_path / f"t10k-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
    with pytest.raises(MissingFileError, match="no train-images"):
        datasets.load(tmp_path)
    with pytest.raises(MissingFileError, match="have no labels"):
        datasets.load(tmp_path, split="test")
    (tmp_path / f"t10k-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    found = datasets.load(tmp_path, split="test")
    assert np.array_equal(found[2][..., 0], images[2])
    assert found.columns["label"].tolist() == [0, 1, 2, 3]
    raw = tmp_path / "MNIST" / "raw"  # as torchvision has them
    raw.mkdir(parents=True)
    for name in ("images-idx3", "labels-idx1"):
        (raw / f"t10k-{name}-ubyte{end}").write_bytes((tmp_path / f"t10k-{name}-ubyte{end}").read_bytes())
    assert np.array_equal(datasets.load(raw.parent, split="test")[2], found[2])
    (tmp_path / f"t10k-images-idx3-ubyte{end}").write_bytes(pack(idx(images)[:-1]))
    with pytest.raises(CorruptError, match="holds 119 values where its header says 4 x 6 x 5"):
        datasets.load(tmp_path, split="test")


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_cifar_binary_and_python(tmp_path):
    images, labels = pictures(6, 32, 32), [3, 1, 4, 1, 5, 9]
    binary, python = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-py"
    for folder in (binary, python):
        folder.mkdir()
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], planes(images)], 1)
    (binary / "test_batch.bin").write_bytes(rows.tobytes())
    (binary / "batches.meta.txt").write_text("plane\ncar\n")
    (python / "test_batch").write_bytes(pickle.dumps({b"data": planes(images), b"labels": labels}, protocol=2))
    for folder in (binary, python):
        found = datasets.load(folder, split="test")
        assert np.array_equal(np.stack(found.some(0, 6)), images)
        assert found.columns["label"].tolist() == labels
    assert datasets.load(binary, split="test").classes == ("plane", "car")
    (binary / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(CorruptError, match="whole number of records"):
        datasets.load(binary, split="test")


class _Runs:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_is_read_as_data(tmp_path, capsys):
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": _Runs(), b"labels": [1]}, protocol=2))
    with pytest.raises(CorruptError, match="Python version"):
        datasets.load(tmp_path, split="test")
    assert capsys.readouterr().out == ""


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset(tmp_path):
    images = pictures(3)
    members = {}
    for i, image in enumerate(images):
        members |= {f"a/{i}.png": png(image), f"a/{i}.cls": str(i).encode()}
    found = datasets.load(tar_of(tmp_path / "x.tar", members))
    assert found.columns["label"] == [0, 1, 2]
    assert found.columns["name"] == ["a/0", "a/1", "a/2"]
    assert np.array_equal(found[2], images[2])
    del members["a/1.cls"]
    with pytest.raises(UsageError, match="sample 'a/1' has no label"):
        datasets.load(tar_of(tmp_path / "y.tar", members))
    (tmp_path / "z.tar").write_bytes(b"nothing" * 200)
    with pytest.raises(CorruptError, match="no tar file"):
        datasets.load(tmp_path / "z.tar")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = pictures(3)
    rows = [{"bytes": png(image), "path": None} for image in images]
    parquet.write_table(pyarrow.table({"image": rows, "label": [2, 0, 1]}), tmp_path / "x.parquet")
    found = datasets.load(tmp_path / "x.parquet")
    assert np.array_equal(found[1], images[1])
    assert found.columns["label"] == [2, 0, 1]
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [2]}), tmp_path / "y.parquet")
    with pytest.raises(UsageError, match="no column of image bytes; it has text, label"):
        datasets.load(tmp_path / "y.parquet")
    (tmp_path / "z.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(CorruptError):
        datasets.load(tmp_path / "z.parquet")


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(MissingFileError):
        datasets.load(tmp_path / "nothing")
    for name, data in (("x.npz", b"PK"), ("y.npz", b"PK\x03\x04" + bytes(60)), ("x.npy", b"\x80\x04.")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptError, match=name) as caught:
            datasets.load(tmp_path / name)
        assert "pickle.load" not in str(caught.value)
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UsageError, match="no data set that is known here"):
        datasets.load(tmp_path / "x.docx")


# ---- the way back ----------------------------------------------------------------------------------------------


def test_export_and_back(tmp_path):
    images = pictures(6)
    source = datasets.load(folder_of_images(tmp_path / "x", images))
    datasets.write(tmp_path / "x.nzd", source)
    with datasets.open(tmp_path / "x.nzd") as reader:
        for target in ("folder", "y.tar", "y.npz"):
            assert datasets.export(reader, tmp_path / target) == 6
            back = datasets.load(tmp_path / target)
            assert list(map(int, back.columns["label"])) == [0, 0, 0, 1, 1, 1]
            assert all(np.array_equal(a, b) for a, b in zip(back.some(0, 6), reader, strict=True))
        assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["cat", "dog"]
        with pytest.raises(UsageError, match="exists already"):
            datasets.export(reader, tmp_path / "folder")
        datasets.export(reader, tmp_path / "j.tar", format="jpeg", quality=95)
        back = datasets.load(tmp_path / "j.tar")
        assert np.abs(back[0].astype(float) - images[0]).mean() < 8
    with tarfile.open(tmp_path / "y.tar") as tar:
        assert json.loads(tar.extractfile("000000.json").read()) == {"name": "cat/000.png", "label": 0}


def test_names_of_a_hostile_file_do_not_become_paths(tmp_path):
    out = io.BytesIO()
    columns = {"name": ["../../a", "b/../c"], "label": ["../x", "/etc"]}
    datasets.write(out, pictures(2), columns=columns)
    with datasets.open(out.getvalue()) as reader:
        datasets.export(reader, tmp_path / "out")
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert files == ["out/other/a.png", "out/other/c.png"]
