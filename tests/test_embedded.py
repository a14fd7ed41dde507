"""GGUF and ONNX come back byte for byte, or as the same file around rounded tensors."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.checkpoints import open_checkpoint

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, 64)).astype("<f4")


def there_and_back(tmp_path: Path, name: str, **how) -> bytes:
    nz.compress_file(tmp_path / name, tmp_path / "a.nz", force=True, **how)
    nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{Path(name).suffix}", force=True)
    return (tmp_path / f"out{Path(name).suffix}").read_bytes()


def assert_damage_is_named(path: Path, data: bytes, rounds: int = 200) -> None:
    for _ in range(rounds):
        broken = bytearray(data)
        for at in RNG.integers(0, min(len(data), 400), 3):
            broken[at] = RNG.integers(0, 256)
        path.write_bytes(broken[: RNG.integers(1, len(data) + 1)])
        try:
            opened = open_checkpoint(path)
            for name in opened.specs:
                opened.read(name)
        except errors.Error:
            pass


# ---- GGUF ------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: dict, alignment: int = 32) -> bytes:
    """A file as llama.cpp writes it; `tensors`: name to ggml's type, its shape (innermost first) and bytes."""
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, alignment),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(text, ("a", "bb", ""))),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        text("flag") + struct.pack("<IB", 7, 1),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values)
    body = b""
    for name, (kind, shape, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + body


TENSORS = {
    "blk.0.weight": (0, (64, 16), WEIGHTS.tobytes()),
    "half": (1, (64, 16), WEIGHTS.astype("<f2").tobytes()),
    "q8": (8, (64, 16), RNG.integers(0, 256, 16 * 2 * 34, np.uint8).tobytes()),
    "q4_k": (12, (256, 2), RNG.integers(0, 256, 2 * 144, np.uint8).tobytes()),
    "newer": (99, (10, 3), b"some bytes of a type that comes later"),
    "norm": (0, (3,), np.arange(3, dtype="<f4").tobytes()),
}


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_gguf_comes_back_byte_for_byte(tmp_path, alignment):
    data = gguf(TENSORS, alignment)
    (tmp_path / "m.gguf").write_bytes(data)
    assert there_and_back(tmp_path, "m.gguf") == data
    arrays = nz.decompress(tmp_path / "a.nz")
    assert np.array_equal(arrays["blk.0.weight"], WEIGHTS)
    assert (arrays["half"].dtype, arrays["q8"].shape, arrays["q4_k"].shape) == (np.float16, (16, 68), (2, 144))


def test_gguf_within_a_bound_keeps_quantized_blocks(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf(TENSORS))
    there_and_back(tmp_path, "m.gguf", bound="abs:0.01")
    before, after = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "out.gguf")
    assert before.specs == after.specs
    for name in before.specs:
        one, other = before.read(name), after.read(name)
        exact = name not in ("blk.0.weight", "half", "norm")
        assert np.array_equal(one, other) if exact else np.abs(one.astype("f8") - other).max() <= 0.01
    assert not np.array_equal(before.read("blk.0.weight"), after.read("blk.0.weight"))


def test_gguf_is_made_from_nothing_else(tmp_path):
    nz.compress({"w": np.ones(3)}).save(tmp_path / "a.nz")
    with pytest.raises(errors.UsageError, match="GGUF file can only be made from the archive of one"):
        nz.decompress_file(tmp_path / "a.nz", tmp_path / "x.gguf")


def test_damaged_gguf_is_named(tmp_path):
    assert_damage_is_named(tmp_path / "m.gguf", gguf(TENSORS))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    with pytest.raises(errors.CorruptError, match="not a readable GGUF file"):
        open_checkpoint(tmp_path / "m.gguf")


# ---- ONNX ------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def tensor(name: str, kind: int, shape: tuple, data: bytes | None, external: dict | None = None) -> bytes:
    dims = b"".join(number(1, n) for n in shape)
    rest = b"" if data is None else message(9, data)
    for key, value in (external or {}).items():
        rest += message(13, message(1, key.encode()) + message(2, value.encode()))
    return dims + number(2, kind) + message(8, name.encode()) + rest + (number(14, 1) if external else b"")


def onnx(initializers: list[bytes], constant: bytes | None = None) -> bytes:
    """A model with a graph that holds these tensors."""
    node = message(1, b"x") + message(2, b"y") + message(4, b"MatMul")
    nodes = message(1, node)
    if constant is not None:
        nodes += message(1, message(4, b"Constant") + message(5, message(1, b"value") + message(5, constant)))
    graph = nodes + message(2, b"g") + b"".join(message(5, each) for each in initializers)
    return number(1, 9) + message(2, b"test") + message(7, graph) + message(8, number(2, 17))


def test_onnx_with_packed_floats(tmp_path):
    """As exporters write them that do not use raw bytes."""
    head = number(1, 16) + number(1, 64)
    floats = head + number(2, 1) + message(8, b"floats") + message(4, WEIGHTS.tobytes())
    doubles = head + number(2, 11) + message(8, b"doubles") + message(10, WEIGHTS.astype("<f8").tobytes())
    pieces = number(1, 8) + number(2, 1) + message(8, b"pieces") + message(4, b"1" * 16) + message(4, b"2" * 16)
    integers = number(1, 2) + number(2, 7) + message(8, b"integers") + message(7, b"\x01\x02")
    data = onnx([floats, doubles, pieces, integers])
    (tmp_path / "m.onnx").write_bytes(data)
    assert there_and_back(tmp_path, "m.onnx") == data
    found = nz.decompress(tmp_path / "a.nz")
    assert set(found) == {"floats", "doubles"}
    assert np.array_equal(found["floats"], WEIGHTS)
    assert np.array_equal(found["doubles"], WEIGHTS.astype("f8"))


def test_onnx_comes_back_byte_for_byte(tmp_path):
    weight = tensor("W", 1, (16, 64), WEIGHTS.tobytes())
    counts = tensor("n", 7, (5,), np.arange(5, dtype="<i8").tobytes())
    packed = tensor("int4", 22, (6,), b"\x12\x34\x56")
    constant = tensor("c", 10, (3,), np.ones(3, "<f2").tobytes())
    data = onnx([weight, counts, packed], constant)
    (tmp_path / "m.onnx").write_bytes(data)
    assert there_and_back(tmp_path, "m.onnx") == data
    arrays = nz.decompress(tmp_path / "a.nz")
    assert np.array_equal(arrays["W"], WEIGHTS)
    assert arrays["n"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["int4"].tolist() == [0x12, 0x34, 0x56]
    assert arrays["c"].dtype == np.float16
    there_and_back(tmp_path, "m.onnx", bound="abs:0.01")
    after = open_checkpoint(tmp_path / "out.onnx")
    assert 0 < np.abs(after.read("W") - WEIGHTS).max() <= 0.01
    assert np.array_equal(after.read("n"), np.arange(5))


def test_onnx_with_data_in_another_file_is_a_folder(tmp_path):
    where = {"location": "model.onnx.data", "offset": "64", "length": str(WEIGHTS.nbytes)}
    tied = tensor("tied", 1, (16, 64), None, where)
    os.mkdir(tmp_path / "m")
    data = onnx([tensor("W", 1, (16, 64), None, where), tied, tensor("b", 1, (2,), np.ones(2, "<f4").tobytes())])
    (tmp_path / "m/model.onnx").write_bytes(data)
    (tmp_path / "m/model.onnx.data").write_bytes(b"\1" * 64 + WEIGHTS.tobytes() + b"end")
    nz.compress_file(tmp_path / "m", tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "out")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    arrays = nz.decompress(tmp_path / "a.nz")
    assert set(arrays) == {"W", "b"}
    assert np.array_equal(arrays["W"], WEIGHTS)
    with pytest.raises(errors.UsageError, match=r"'W' is in a file of its own.*give the folder"):
        nz.compress_file(tmp_path / "m/model.onnx", tmp_path / "x.nz")
    (tmp_path / "m/model.onnx.data").unlink()
    with pytest.raises(errors.CorruptError, match=r"model\.onnx\.data"):
        nz.compress_file(tmp_path / "m", tmp_path / "x.nz")


def test_damaged_onnx_is_named(tmp_path):
    assert_damage_is_named(tmp_path / "m.onnx", onnx([tensor("W", 1, (16, 64), WEIGHTS.tobytes())]))
