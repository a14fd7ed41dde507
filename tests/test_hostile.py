"""Hostile archives whose checksums are right: each is refused by name, at once, without taking memory."""
# ruff: noqa: E501

from __future__ import annotations

import base64
import copy
import json
import os
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import nearzip as nz
from nearzip.container import MAGIC
from nearzip.digests import digest
from nearzip.errors import CorruptError, Error, LimitError, NewerFormatError, TruncatedError, WrongBaseError
from nearzip.framing import CLOSING, FOOTER_BYTES, HEADER_BYTES
from nearzip.stages.base import put_varint
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.testing import seal, seal_columns, unseal

BIG = [
    1 << 31,
    1 << 32,
    (1 << 58) - 1,
    1 << 58,
    (1 << 62) - 1,
    1 << 62,
    1 << 63,
    (1 << 63) - 1,
    1 << 64,
    10**30,
    10**4000,
]


@dataclass(frozen=True)
class Evil:
    """A hostile file and what it must be refused with."""

    name: str
    data: bytes
    error: type[Error] | tuple[type[Error], ...] = CorruptError
    base: dict[str, Any] | None = field(default=None, compare=False)


def good() -> tuple[dict[str, Any], bytes]:
    """An archive of three tensors, one of them tied, as JSON and blocks."""
    w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    archive = nz.compress({"w": w, "n": np.arange(5), "tied": w}, metadata={"a": "b"}, threads=1)
    return unseal(archive.to_bytes())


DOCUMENT, BLOCKS = good()


def changed(change: Callable[[dict[str, Any]], Any], blocks: bytes = BLOCKS) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return seal(document, blocks)


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def made(
    tensors: list[Any], pipeline: Any, payloads: list[bytes], block_bytes: int = 4 << 20, lie: int | None = None
) -> bytes:
    """One segment with these tensors and blocks, the blocks' checksums right."""
    blocks = [[0, len(p) if lie is None else lie, text(digest(p))] for p in payloads]
    segment = {
        "tensors": list(range(len(tensors))),
        "block_bytes": block_bytes,
        "digest": text(bytes(16)),
        "base": None,
    }
    document = {
        **DOCUMENT, "tensors": tensors, "aliases": {}, "pipelines": [pipeline],
        "segments": [{**segment, "blocks": blocks}],
    }  # fmt: skip
    return seal(document, b"".join(payloads))


def brief(number: int) -> str:
    return str(number) if number < 10**20 else f"10^{len(str(number)) - 1}"


RAW = [{"id": "raw-bytes"}]


def pipe(*stages: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": "raw-bytes"}, *stages]


# ---- the collection --------------------------------------------------------------------------------------------


def headers() -> Iterator[Evil]:
    head = struct.Struct("<8sHHI")
    for name, fields, error in [
        ("newer", (MAGIC, 4, 4, 0), NewerFormatError),
        ("much newer", (MAGIC, 65535, 65535, 0), NewerFormatError),
        ("without the fields of its format", (MAGIC, 2, 2, 0), CorruptError),
        ("reader newer than writer", (MAGIC, 1, 4, 0), NewerFormatError),
        ("an index of JSON for one in columns", (MAGIC, 3, 3, 0), CorruptError),
        ("written in a later format than it needs", (MAGIC, 3, 1, 0), CorruptError),
        ("writer 0", (MAGIC, 0, 0, 0), CorruptError),
        ("reader 0", (MAGIC, 1, 0, 0), CorruptError),
        ("reserved bits", (MAGIC, 1, 1, 1), CorruptError),
        ("all reserved bits", (MAGIC, 1, 1, 0xFFFFFFFF), CorruptError),
        ("another magic", (b"\x89NZIP\n\x1a\n", 1, 1, 0), CorruptError),
        ("a PNG", (b"\x89PNG\r\n\x1a\n", 1, 1, 0), CorruptError),
        ("a zip", (b"PK\3\4\0\0\0\0", 1, 1, 0), CorruptError),
    ]:
        yield Evil(f"header: {name}", seal(DOCUMENT, BLOCKS, header=head.pack(*fields)), error)
    yield Evil("header: pickle", b"\x80\x04\x95" + bytes(100))
    yield Evil("header: alone", seal(DOCUMENT, BLOCKS)[:HEADER_BYTES], TruncatedError)
    yield Evil("file: empty", b"", TruncatedError)


def footers() -> Iterator[Evil]:
    for claim in [0, 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1]:
        yield Evil(f"footer: file of {claim} bytes", seal(DOCUMENT, BLOCKS, total=claim))
        yield Evil(f"footer: index of {claim} bytes as stored", seal(DOCUMENT, BLOCKS, n_stored=claim))
        bound = LimitError if claim >= 1 << 31 else CorruptError
        yield Evil(f"footer: index of {claim} bytes", seal(DOCUMENT, BLOCKS, n_document=claim), bound)
    yield Evil("footer: 16 MiB of index in a small file", seal(DOCUMENT, BLOCKS, n_document=16 << 20), LimitError)
    yield Evil("footer: 256 KiB of index claimed", seal(DOCUMENT, BLOCKS, n_document=1 << 18))
    whole = seal(DOCUMENT, BLOCKS)
    yield Evil("footer: twice", whole + whole[-FOOTER_BYTES:])
    yield Evil("file: twice", whole + whole)
    yield Evil("file: trailing zeros", whole + bytes(64), TruncatedError)
    yield Evil("file: closing twice", whole + CLOSING)
    yield Evil("file: bytes in front", b"\0" + whole)


def frames() -> Iterator[Evil]:
    plain = json.dumps(DOCUMENT).encode()
    n = len(plain)
    pack = zstandard.ZstdCompressor(level=3).compress
    nothing = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    for name, stored in [
        ("not zstd", plain),
        ("empty", b""),
        ("no content size", nothing),
        ("half of it", pack(plain)[:-5]),
        ("two frames", pack(plain[: n // 2]) + pack(plain[n // 2 :])),
        ("a frame and zeros", pack(plain) + bytes(9)),
        ("a skippable frame in front", b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"abcd" + pack(plain)),
        ("a skippable frame behind", pack(plain) + b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"abcd"),
        ("a shorter index", pack(plain[:-1])),
        ("zstd in zstd", pack(pack(plain))),
        ("needs a dictionary", _with_dictionary(plain)),
    ]:
        yield Evil(f"index frame: {name}", seal(plain, BLOCKS, stored=stored))
    for size in [1 << 20, 16 << 20, 1 << 30, 4 << 30]:
        bomb = _zeros_frame(size)
        yield Evil(
            f"index bomb: {size} zeros", seal(b"", BLOCKS, stored=bomb, n_document=size), (LimitError, CorruptError)
        )
        yield Evil(f"index bomb: {size} zeros, hidden", seal(plain, BLOCKS, stored=bomb))
    # A frame whose content size field says 2^63, the body a raw block of nothing.
    huge = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 63) + b"\x01\x00\x00"
    yield Evil("index frame: claims 2^63 bytes", seal(plain, BLOCKS, stored=huge))
    window = b"\x28\xb5\x2f\xfd\xc0\xff" + struct.pack("<Q", n) + b"\x01\x00\x00"
    yield Evil("index frame: window of 3.75 TiB", seal(plain, BLOCKS, stored=window))


def _with_dictionary(plain: bytes) -> bytes:
    samples = [bytes([i % 7, i % 5, i % 3]) * 40 for i in range(200)]
    dictionary = zstandard.train_dictionary(512, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(plain)


def _zeros_frame(size: int) -> bytes:
    """A zstd frame that states `size` and holds that many zeros: run-length blocks of 128 KiB."""
    body = bytearray(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size))
    left = size
    while left:
        n = min(left, 128 << 10)
        left -= n
        body += struct.pack("<I", n << 3 | 2 | (not left))[:3] + b"\0"
    return bytes(body)


def documents() -> Iterator[Evil]:
    raw: dict[str, bytes] = {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "an empty object": b"{}",
        "a number": b"1",
        "a string": b'"x"',
        "not JSON": b"\x80\x04\x95",
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "UTF-16": json.dumps(DOCUMENT).encode("utf-16"),
        "BOM": b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode(),
        "two documents": json.dumps(DOCUMENT).encode() * 2,
        "trailing comma": json.dumps(DOCUMENT).encode()[:-1] + b",}",
        "cut short": json.dumps(DOCUMENT).encode()[:-1],
        "comment": b"/**/" + json.dumps(DOCUMENT).encode(),
        "NUL behind": json.dumps(DOCUMENT).encode() + b"\0",
        "17 deep": b"[" * 17 + b"]" * 17,
        "100 000 deep": b"[" * 100_000 + b"]" * 100_000,
        "240 000 open": b"[" * 240_000,
        "objects 40 000 deep": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        "deep behind a quote": b'"\\"' * 20_000 + b"[" * 5000,
        "escaped quotes": b'\\"' * 130_000,
        "escapes in a string": b'"' + b"\\n" * 130_000,
        "quotes": b'"' * 260_000,
        "backslashes": b"\\" * 260_000,
        "lists": b"[" + b"[]," * 80_000 + b"[]]",
        "objects": b"[" + b"{}," * 80_000 + b"{}]",
        "digits": b"1" * 250_000,
        "5000 digits": b'{"a":' + b"9" * 5000 + b"}",
        "exponent": b"1e999999999",
        "numbers": b"[" + b"1e308," * 40_000 + b"1]",
        "NaN": b"NaN",
        "Infinity": b"-Infinity",
        "blanks": b" " * 250_000,
    }
    for name, document in raw.items():
        yield Evil(f"JSON: {name}", seal(document, BLOCKS))
    plain = json.dumps(DOCUMENT)
    for key in DOCUMENT:
        yield Evil(f"JSON: key {key!r} twice", seal((plain[:-1] + f', "{key}": null}}').encode(), BLOCKS))
    yield Evil("JSON: metadata key twice", seal(plain.replace('{"a": "b"}', '{"a": "b", "a": "c"}').encode(), BLOCKS))


ODD: dict[str, Any] = {
    "null": None, "true": True, "zero": 0, "minus one": -1, "half": 0.5, "text": "x", "list": [], "object": {},
    "nested": [[[]]], "2^63": 1 << 63,
}  # fmt: skip


def types() -> Iterator[Evil]:
    """Every field of the index, and of its parts, missing or of another type."""
    for key, right in DOCUMENT.items():
        yield Evil(f"{key}: missing", changed(lambda d, k=key: d.pop(k)))
        for name, odd in ODD.items():
            if (
                type(odd) is type(right)
                or (odd is None and key in ("base", "tree"))
                or (name == "text" and key == "tree")
            ):
                continue
            if key == "base" and isinstance(odd, str):
                continue  # an archive that names a base it has no use for is allowed
            yield Evil(f"{key}: {name}", changed(lambda d, k=key, o=odd: d.update({k: o})))
    yield Evil("an unknown field", changed(lambda d: d.update(more=1)))
    for key in DOCUMENT["segments"][0]:
        yield Evil(f"segment {key}: missing", changed(lambda d, k=key: d["segments"][0].pop(k)))
        for name, odd in ODD.items():
            if key == "base" and odd is None:
                continue
            yield Evil(f"segment {key}: {name}", changed(lambda d, k=key, o=odd: d["segments"][0].update({k: o})))
    for place in range(3):
        for name, odd in ODD.items():
            if not (place == 0 and odd == 0 and type(odd) is int):
                yield Evil(
                    f"block, place {place}: {name}",
                    changed(lambda d, p=place, o=odd: d["segments"][0]["blocks"][0].__setitem__(p, o)),
                )
            if place == 2 and name == "list":
                continue  # the shape of a scalar: refused for the number of bytes, below
            yield (
                Evil(
                    f"tensor, place {place}: {name}",
                    changed(lambda d, p=place, o=odd: d["tensors"][0].__setitem__(p, o)),
                    (CorruptError, NewerFormatError),
                )
                if not (place == 0 and name == "text")
                else Evil("tensor: too long", changed(lambda d: d["tensors"][0].append(1)))
            )
    for name, odd in ODD.items():
        if name != "list":
            yield (
                Evil(f"gone holds {name}", changed(lambda d, o=odd: d["gone"].append(o)))
                if name != "text"
                else Evil("gone is text", changed(lambda d: d.update(gone="w")))
            )
        if name != "text":
            yield Evil(f"metadata holds {name}", changed(lambda d, o=odd: d["metadata"].update(z=o)))
        yield Evil(f"pipelines hold {name}", changed(lambda d, o=odd: d["pipelines"].append(o)))
        yield Evil(f"segments hold {name}", changed(lambda d, o=odd: d["segments"].append(o)))


def tensors() -> Iterator[Evil]:
    def shape(value: Any) -> bytes:
        return changed(lambda d: d["tensors"][0].__setitem__(2, value))

    for big in BIG:
        yield Evil(f"shape [{brief(big)}]", shape([big]), (CorruptError, LimitError))
        yield Evil(f"shape [0, {brief(big)}]", shape([0, big]), (CorruptError, LimitError))
        yield Evil(f"shape [-{brief(big)}]", shape([-big]))
    yield Evil("shape: product overflows 64 bits", shape([1 << 32, 1 << 32]))
    yield Evil("shape: product overflows to the right size", shape([(1 << 32) + 3, (1 << 32) + 4]))
    yield Evil("shape: product wraps to zero", shape([1 << 32, 1 << 32, 12]))
    yield Evil("shape: minus times minus", shape([-3, -4]))
    yield Evil("shape: another product", shape([3, 5]), CorruptError)
    yield Evil("shape: text", shape(["3", 4]))
    yield Evil("shape: real", shape([3.0, 4]))
    yield Evil("shape: true", shape([True, 12]))
    yield Evil("shape: nested", shape([[3], 4]))
    yield Evil("rank 33", shape([1] * 31 + [3, 4]), LimitError)
    yield Evil("rank 100 000", shape([1] * 100_000), LimitError)
    yield Evil("name: 4097 bytes", changed(lambda d: d["tensors"][0].__setitem__(0, "x" * 4097)), LimitError)
    yield Evil(
        "name: 1366 wide characters", changed(lambda d: d["tensors"][0].__setitem__(0, "\u4e00" * 1366)), LimitError
    )
    for bad in ("\ud800", "w\udfff", "\udc80"):
        yield Evil(f"name: surrogate {bad!a}", changed(lambda d, b=bad: d["tensors"][0].__setitem__(0, b)))
        yield Evil(f"metadata value: surrogate {bad!a}", changed(lambda d, b=bad: d["metadata"].update(a=b)))
        yield Evil(f"metadata key: surrogate {bad!a}", changed(lambda d, b=bad: d["metadata"].update({b: "x"})))
        yield Evil(f"writer: surrogate {bad!a}", changed(lambda d, b=bad: d.update(writer=b)))
        yield Evil(f"gone: surrogate {bad!a}", changed(lambda d, b=bad: d.update(gone=[b])))
    yield Evil("name: twice", changed(lambda d: d["tensors"][1].__setitem__(0, "w")))
    for dtype in (
        "float128",
        "object",
        "O",
        "<f4",
        "float32 ",
        "FLOAT32",
        "void",
        "str",
        "datetime64",
        "",
        "x" * 100_000,
    ):
        yield Evil(
            f"dtype {dtype[:20]!r}", changed(lambda d, t=dtype: d["tensors"][0].__setitem__(1, t)), NewerFormatError
        )
    for dtype in ("float64", "float16", "int8", "complex128"):
        yield Evil(f"another dtype: {dtype}", changed(lambda d, t=dtype: d["tensors"][0].__setitem__(1, t)))
    yield Evil("a tensor in no segment", changed(lambda d: d["tensors"].append(["more", "float32", [1]])))
    yield Evil(
        "8000 tensors, none coded", changed(lambda d: d.update(tensors=[[str(i), "bool", []] for i in range(8_000)]))
    )


def segments() -> Iterator[Evil]:
    def first(change: Callable[[dict[str, Any]], Any]) -> bytes:
        return changed(lambda d: change(d["segments"][0]))

    yield Evil("segment: no tensor", first(lambda s: s.update(tensors=[])))
    yield Evil("segment: tensor twice", first(lambda s: s.update(tensors=[0, 0])))
    yield Evil("segment: tensor of another", first(lambda s: s.update(tensors=[1])))
    yield Evil("segment: several dtypes", first(lambda s: s.update(tensors=[0, 1])))
    yield Evil("segment: tensor -1", first(lambda s: s.update(tensors=[-1])))
    yield Evil("segment: the alias, too", first(lambda s: s.update(tensors=[0, 2])))
    for n in BIG:
        yield Evil(f"segment: tensor {brief(n)}", first(lambda s, n=n: s.update(tensors=[n])))
        yield Evil(f"block of {brief(n)} bytes", first(lambda s, n=n: s["blocks"][0].__setitem__(1, n)))
        yield Evil(f"pipeline {brief(n)}", first(lambda s, n=n: s["blocks"][0].__setitem__(0, n)))
        yield Evil(f"block size {brief(n)}", first(lambda s, n=n: s.update(block_bytes=n)))
    for n in (0, -1, 1, 4095, 4 << 20 | 1, 68 << 20, 1 << 30):
        yield Evil(f"block size {n}", first(lambda s, n=n: s.update(block_bytes=n)))
    for delta in (-1, 1, 1000):
        yield Evil(
            f"block {delta:+} bytes", first(lambda s, n=delta: s["blocks"][0].__setitem__(1, s["blocks"][0][1] + n))
        )
    yield Evil("blocks: none", first(lambda s: s.update(blocks=[])))
    yield Evil("blocks: one too many", first(lambda s: s["blocks"].append([0, 0, text(digest(b""))])))
    yield Evil("blocks: 8000 empty", first(lambda s: s.update(blocks=[[0, 0, text(digest(b""))]] * 8_000)))
    yield Evil("segments: none", changed(lambda d: d.update(segments=[])))
    yield Evil("segments: one twice", changed(lambda d: d["segments"].append(d["segments"][0])))
    yield Evil("segments: other order", changed(lambda d: d["segments"].reverse()))
    yield Evil("a hole between blocks", changed(lambda d: None, BLOCKS[:10] + b"\0" + BLOCKS[10:]))
    yield Evil("bytes behind the blocks", changed(lambda d: None, BLOCKS + b"\0"))
    yield Evil("bytes before the blocks", changed(lambda d: None, b"\0" + BLOCKS))
    yield Evil("blocks missing", changed(lambda d: None, b""))
    right = DOCUMENT["segments"][0]["digest"]
    for name, odd in {
        "empty": "", "too short": right[:-2], "too long": right + "AAAA", "padded": right + "==", "one =": right + "=",
        "blank": " " + right[1:], "newline": right[:5] + "\n" + right[5:], "URL alphabet": "-_" + right[2:],
        "hexadecimal": "00" * 16, "not ASCII": "\u00e9" * 22, "loose last bits": right[:-1] + _looser(right[-1]),
        "another": text(bytes(16)), "NUL": "\0" * 22, "many": "A" * 200_000,
    }.items():  # fmt: skip
        yield Evil(f"segment digest: {name}", first(lambda s, o=odd: s.update(digest=o)))
        yield Evil(f"block digest: {name}", first(lambda s, o=odd: s["blocks"][0].__setitem__(2, o)))
        yield Evil(f"base digest: {name}", first(lambda s, o=odd: s.update(base=o)))
    yield Evil(
        "a base digest, and a base's name",
        changed(lambda d: (d.update(base="x"), d["segments"][0].update(base=text(bytes(16))))),
        WrongBaseError,
    )


def _looser(last: str) -> str:
    """The next letter of the alphabet: the same 16 bytes to a careless reader."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return alphabet[alphabet.index(last) + 1]


def aliases() -> Iterator[Evil]:
    for name, odd in {
        "itself": {"0": 0}, "itself, uncoded": {"2": 2}, "a loop": {"2": 0, "0": 2}, "a chain": {"2": 1, "1": 0},
        "nowhere": {"2": 3}, "negative": {"2": -1}, "negative key": {"-1": 0}, "text target": {"2": "0"},
        "null target": {"2": None}, "real target": {"2": 0.0}, "true": {"2": True}, "list": {"2": [0]},
        "leading zero": {"02": 0}, "blank": {" 2": 0}, "plus": {"+2": 0}, "empty key": {"": 0},
        "Arabic digit": {"\u0662": 0}, "superscript": {"\u00b2": 0}, "underscore": {"0_2": 0}, "huge key": {"9" * 5000: 0},
        "huge target": {"2": 10**4000}, "another dtype": {"2": 1}, "name": {"tied": 0}, "2^64 + 2": {str((1 << 64) + 2): 0},
        "a coded tensor": {"0": 0, "2": 0}, "none": {},
    }.items():  # fmt: skip
        yield Evil(f"alias: {name}", changed(lambda d, o=odd: d.update(aliases=o)))
    yield Evil("alias: another shape", changed(lambda d: d["tensors"][2].__setitem__(2, [4, 3])))


def stages() -> Iterator[Evil]:
    def pipeline(value: Any) -> bytes:
        return changed(lambda d: d["pipelines"].__setitem__(0, value))

    rans = {"id": "rans", "split": "magnitude"}
    step = {"id": "uniform-step", "step": 0.1}
    for name in ("sz9", "", "rans ", "RANS", "__class__", "os.system", "subtract-base+uniform-step", "x" * 100_000):
        yield Evil(f"stage {name[:30]!r}", pipeline([{"id": name}]), NewerFormatError)
    for name, odd in {
        "empty": [], "object": {}, "no id": [{}], "id a number": [{"id": 1}], "id null": [{"id": None}],
        "17 stages": [*pipe(), *[{"id": "gzip", "level": 1}] * 16], "a thousand stages": [{"id": "raw-bytes"}] * 1000,
        "no first stage": [rans], "no last stage": [step], "kinds differ": [{"id": "raw-bytes"}, rans],
        "backwards": [rans, step], "parameter missing": [{"id": "uniform-step"}, rans],
        "parameter unknown": [{"id": "uniform-step", "step": 0.1, "x": 1}, rans],
        "parameter list": [{"id": "uniform-step", "step": [0.1]}, rans],
        "parameter text": [{"id": "uniform-step", "step": "0.1"}, rans],
        "parameter true": [{"id": "uniform-step", "step": True}, rans],
        "step 0": [{"id": "uniform-step", "step": 0}, rans],
        "step -1": [{"id": "uniform-step", "step": -1}, rans],
        "step -0.0": [{"id": "uniform-step", "step": -0.0}, rans],
        "step 10^400": [{"id": "uniform-step", "step": 10**400}, rans],
        "step 10^4000": [{"id": "uniform-step", "step": 10**4000}, rans],
        "eps 0": [{"id": "log-step", "eps": 0.0, "delta": False}, rans],
        "eps text": [{"id": "log-step", "eps": "x" * 100_000, "delta": False}, rans],
        "delta 1": [{"id": "log-step", "eps": 0.1, "delta": 1}, rans],
        "delta without base": [{"id": "log-step", "eps": 0.1, "delta": True}, rans],
        "base not there": [{"id": "subtract-base"}, step, rans],
        "ordered-delta without base": [{"id": "ordered-delta"}, rans],
        "split": [{"id": "ordered-bits"}, {"id": "rans", "split": "both"}],
        "split null": [{"id": "ordered-bits"}, {"id": "rans", "split": None}],
        "gzip level 10": pipe({"id": "gzip", "level": 10}), "gzip level -1": pipe({"id": "gzip", "level": -1}),
        "gzip level 2^63": pipe({"id": "gzip", "level": 1 << 63}), "gzip level real": pipe({"id": "gzip", "level": 9.0}),
        "lzma preset 10": pipe({"id": "lzma", "preset": 10}), "lzma extreme": pipe({"id": "lzma", "preset": 9 | 1 << 31}),
        "zstd level 23": pipe({"id": "zstd", "level": 23}), "zstd level -131072": pipe({"id": "zstd", "level": -131072}),
        "many parameters": [{"id": "raw-bytes", **{str(i): i for i in range(10_000)}}],
    }.items():  # fmt: skip
        yield Evil(f"pipeline: {name}", pipeline(odd))
    for number in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400"):
        plain = json.dumps({**DOCUMENT, "pipelines": [[{"id": "uniform-step", "step": "?"}, rans], RAW]})
        yield Evil(f"pipeline: step {number}", seal(plain.replace('"?"', number).encode(), BLOCKS))
    yield Evil("pipelines: none", changed(lambda d: d.update(pipelines=[])))
    # The tensors' own blocks under other pipelines.
    for other in ([step, rans], RAW, [step, {"id": "run-lengths"}], [step, {"id": "pack-integers"}], pipe(
        {"id": "zstd", "level": 1}), pipe({"id": "gzip", "level": 1}), pipe({"id": "lzma", "preset": 1})):  # fmt: skip
        if [s["id"] for s in other] != [s["id"] for s in DOCUMENT["pipelines"][0]]:  # levels matter to encoders alone
            yield Evil(f"pipeline: {'+'.join(s['id'] for s in other)} instead", pipeline(other))
    # What is not a float cannot have been rounded.
    for dtype in ("int32", "bool", "complex64", "uint8"):
        for stage in (step, {"id": "log-step", "eps": 0.1, "delta": False}):
            yield Evil(
                f"{stage['id']} on {dtype}",
                made([["t", dtype, [1]]], [stage, {"id": "pack-integers"}], [b"\0\0\1\1\1"]),
            )


def blocks() -> Iterator[Evil]:
    """Good indexes around hostile blocks."""
    t = [["t", "float32", [8]]]
    body = bytes(32)
    rans = [{"id": "ordered-bits"}, {"id": "rans", "split": "planes"}]
    head = b"\0\0\1\4"  # no patch, no side for ordered-bits, one byte for rans: 32 bits wide
    for name, payload in {
        "empty": b"", "patch longer than the block": b"\x7f\0" + body, "patch of 2^62": put_varint(1 << 62) + body,
        "endless number": b"\xff" * 20, "overlong number": b"\x80\0\0" + body, "side longer than the block": b"\0\x7f" + body,
        "side of 2^62": b"\0" + put_varint(1 << 62) + body, "one byte short": b"\0\0" + body[1:],
        "one byte long": b"\0\0" + body + b"\0", "patch of 9 places": b"\3\x09\1\0\0\0" + body, "patch of none": b"\2\0\0\0" + body,
        "patch of 2^40 places": b"\x08" + put_varint(1 << 40) + b"\1\0\0" + body,
    }.items():  # fmt: skip
        yield Evil(f"block: {name}", made(t, RAW, [payload]))
    for name, stream in {
        "empty": b"", "unknown split": b"\2", "split 255": b"\xff" + body, "planes of 2^62": b"\1" + put_varint(1 << 62),
        "planes missing": b"\1\1\0", "scale 7": b"\1\5\7\x0b\1\0\0", "scale 17": b"\1\5\x11\x0b\1\0\0",
        "scale 255": b"\1\5\xff\x0b\1\0\0", "chunks of 2^5": b"\1\5\x0c\5\1\0\0", "chunks of 2^25": b"\1\5\x0c\x19\1\0\0",
        "chunks of 2^255": b"\1\5\x0c\xff\1\0\0", "no table": b"\1\3\x0c\x0b\0", "17 tables": b"\1\3\x0c\x0b\x11",
        "2^62 tables": b"\1\x0b\x0c\x0b" + put_varint(1 << 62), "table cut": b"\1\4\x0c\x0b\1\xff",
        "frequencies of zero only": b"\1\x0c\x0c\x0b\1\xff" + bytes(8), "frequencies too large": b"\1\x10\x0c\x0b\1\1" + bytes(12),
        "magnitude 6": b"\0\6\1\0", "magnitude, tokens cut": b"\0\0\x7f\0", "stored too short": b"\1\4\0\1\2\3",
        "stored too long": b"\1\x0a\0" + bytes(9), "states too low": b"\1\x28\x0c\x0b\1\1\x41\0" + bytes(33),
        "bits behind": b"\0\0\x09\0" + bytes(8) + b"\1", "symbol too large": b"\0\0\x09\0" + b"\xff" * 8,
    }.items():  # fmt: skip
        yield Evil(f"rans: {name}", made(t, rans, [head + stream]))
    for code in (b"\0", b"\3", b"x", b"\1", b"i", b"\x08"):
        yield Evil(
            f"rans: symbols of type {code!r}", made(t, rans, [b"\0\0\1" + code + b"\1" + (b"\5\x0c\x0b\1\0\0" * 4)])
        )
    step = {"id": "uniform-step", "step": 0.1}
    for name, stream in {
        "empty": b"", "cut": b"\x80", "run without length": b"\0", "run of none": b"\0\0", "run of 2^34": b"\0\xff\xff\xff\xff\x3f",
        "a run too long": b"\0\x09", "a run too short": b"\0\7", "overlong": b"\0\x88\0", "six bytes": b"\xff\xff\xff\xff\xff\1",
        "symbol of 2^32": b"\x80\x80\x80\x80\x10\0\7", "symbol of 2^35 - 1": b"\xff\xff\xff\xff\x7f\0\7",
        "half a million numbers": b"\1" * 500_000,
    }.items():  # fmt: skip
        yield Evil(f"run lengths: {name}", made(t, [step, {"id": "run-lengths"}], [b"\0\0\0" + stream]))
    for side in (b"", b"\0", b"\3", b"\x08", b"\1\1"):
        yield Evil(
            f"packed integers: width {side!r}",
            made(t, [step, {"id": "pack-integers"}], [b"\0\0" + put_varint(len(side)) + side + body]),
        )


def bombs() -> Iterator[Evil]:
    """Small files that would be large. What a limit stops is a LimitError; what lies about itself is corrupt."""
    mib = 1 << 20
    # Declared honestly, beyond the limits: refused before anything is decoded.
    block = b"\0\0" + bytes(8)
    for name, shape, dtype in [
        ("1 TiB", [1 << 38], "float32"),
        ("65 GiB", [65 << 30], "bool"),
        ("1.1 GiB", [18 * 64 * mib // 8], "float64"),
    ]:
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        payloads = [block] * -(-n // (64 * mib))
        yield Evil(
            f"bomb: {name} declared in {len(payloads)} blocks",
            made([["t", dtype, shape]], RAW, payloads, 64 * mib),
            LimitError,
        )
    many = [[f"t{i}", "float32", [16 * mib]] for i in range(17)]
    document = json.loads(json.dumps(DOCUMENT)) | {"tensors": many, "aliases": {}, "pipelines": [RAW], "segments": [
        {"tensors": [i], "block_bytes": 64 * mib, "digest": text(bytes(16)), "base": None,
         "blocks": [[0, 10, text(digest(block))]]} for i in range(17)]}  # fmt: skip
    yield Evil("bomb: 17 tensors of 64 MiB", seal(document, block * 17), LimitError)
    tied = json.loads(json.dumps(document)) | {
        "segments": document["segments"][:1],
        "aliases": {str(i): 0 for i in range(1, 17)},
    }
    yield Evil("bomb: 16 aliases of 64 MiB", seal(tied, block), LimitError)
    # Declared small, but compressed streams hold more.
    t = [["t", "uint8", [1000]]]
    for size in (16 * mib, 256 * mib):
        zeros = bytes(16 * mib)
        for stage in (Gzip(9), Zstd(3), Lzma(0)):
            packed = _packed(stage, zeros, size // len(zeros))
            yield Evil(f"bomb: {stage.id} of {size >> 20} MiB", made(t, pipe(stage.to_json()), [b"\0\0\0" + packed]))
    nested = Gzip(9).encode(Gzip(9).encode(bytes(64 * mib)).data).data
    yield Evil("bomb: gzip in gzip", made(t, pipe(Gzip(9).to_json(), Gzip(9).to_json()), [b"\0\0\0\0" + nested]))
    yield Evil("bomb: zstd claims 1 TiB", made(t, pipe({"id": "zstd", "level": 3}), [b"\0\0\0" + _claim(1 << 40)]))
    yield Evil("bomb: zstd claims 1 GiB", made(t, pipe({"id": "zstd", "level": 3}), [b"\0\0\0" + _claim(1 << 30)]))
    yield Evil(
        "bomb: zstd without a size",
        made(t, pipe({"id": "zstd", "level": 3}), [b"\0\0\0" + b"\x28\xb5\x2f\xfd\x00\x88\x01\x00\x00"]),
    )
    # Declared large enough to be allowed, but the stream is not there.
    large = [["t", "uint8", [64 * mib]]]
    yield Evil("bomb: 64 MiB declared, nothing there", made(large, RAW, [b"\0\0"], 64 * mib))
    yield Evil(
        "bomb: 64 MiB declared, gzip of nothing", made(large, pipe(Gzip(9).to_json()), [b"\0\0\0\3\0"], 64 * mib)
    )
    yield Evil(
        "bomb: 64 MiB declared, zstd cut",
        made(large, pipe({"id": "zstd", "level": 3}), [b"\0\0\0" + _claim(64 * mib)], 64 * mib),
    )
    thousand = [["t", "float32", [250 * mib]]]
    yield Evil("bomb: 1000 MiB declared, nothing there", made(thousand, RAW, [b"\0\0"] * 16, 64 * mib))


def _claim(size: int) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


def _packed(stage: Any, zeros: bytes, times: int) -> bytes:
    """`times` x `zeros` as one stream, without holding them."""
    if isinstance(stage, Zstd):
        return _zeros_frame(len(zeros) * times)
    import lzma
    import zlib

    pack = zlib.compressobj(9, zlib.DEFLATED, -15) if isinstance(stage, Gzip) else lzma.LZMACompressor(
        lzma.FORMAT_RAW, filters=stage._filters)  # fmt: skip
    return b"".join(pack.compress(zeros) for _ in range(times)) + pack.flush()


def column(values: Any) -> bytes:
    """Numbers as docs/format.md has them; bytes are taken as they are."""
    if isinstance(values, bytes):
        return values
    width = next(w for w in (1, 2, 4, 8) if max(values, default=0) < 1 << 8 * w)
    return bytes([width]) + b"".join(bytes(n >> 8 * plane & 255 for n in values) for plane in range(width))


#: An index in columns of the tensors "w" and "v", float32, (2, 3) and (4), in one block, and its fields in order.
COLUMNS: dict[str, Any] = {
    "with base": b"\0", "head": None, "tensors": 2, "shared": [0, 0], "own": [1, 1], "names": b"wv", "dtypes": [0, 0],
    "ranks": [2, 1], "dims": [2, 3, 4], "segments": 1, "members": [2], "order": [0, 0], "pieces": [0], "has base": [0],
    "pipelines": [0], "lengths": [42],
}  # fmt: skip
COUNTS = ("tensors", "segments")
HEAD = {"writer": "w", "method": {}, "bound": {}, "pipelines": [[{"id": "raw-bytes"}]]}
PAYLOAD = b"\0\0" + bytes(40)


def in_columns(
    changes: dict[str, Any], head: Any = HEAD, digests: bytes | None = None, blocks: bytes = PAYLOAD
) -> bytes:
    parts = []
    for name, value in {**COLUMNS, **changes}.items():
        if name == "head":
            text = head if isinstance(head, bytes) else json.dumps(head).encode()
            parts.append(put_varint(len(text)) + text)
        elif isinstance(value, int):
            parts.append(put_varint(value))
        elif name == "names":
            parts.append(put_varint(len(value)) + value)
        else:
            parts.append(column(value))
    own = digest(bytes(24)) + digest(bytes(16))
    if digests is None:
        digests = bytes(16) + digest(own) + digest(blocks)[:8]
    return seal_columns(b"".join(parts), digests, blocks)


def columns() -> Iterator[Evil]:
    for name, changes, error in [
        ("neither with nor without a base", {"with base": b"\2"}, CorruptError),
        ("a base that is not there", {"with base": b"\1"}, CorruptError),
        ("a segment's base without one", {"has base": [1]}, CorruptError),
        ("a segment's base is 2", {"has base": [2]}, CorruptError),
        ("one name twice", {"names": b"ww"}, CorruptError),
        ("a name too long for its text", {"own": [1, 2]}, CorruptError),
        ("a name too short for its text", {"own": [1, 0]}, CorruptError),
        ("the first name shares", {"shared": [1, 0]}, CorruptError),
        ("a name shares more than there is", {"shared": [0, 2]}, CorruptError),
        ("a name is half a character", {"names": b"w\xff"}, CorruptError),
        ("a name is half a surrogate pair", {"names": b"w\xed\xa0\x80"}, CorruptError),
        ("a name over the limit", {"own": [1, 5000], "names": b"w" + b"x" * 5000}, LimitError),
        ("a name over the limit in bytes", {"own": [1, 4000], "names": b"w" + "ä".encode() * 4000}, LimitError),
        ("a dtype that is not known", {"dtypes": [0, 22]}, NewerFormatError),
        ("rank 33", {"ranks": [33, 1], "dims": [1] * 34}, LimitError),
        ("a missing size", {"dims": [2, 3]}, CorruptError),
        ("sizes of one for all", {"dims": b"\x11\2"}, CorruptError),
        ("sizes of nothing for all", {"dims": b"\0"}, CorruptError),
        ("a shape of 2^62 values", {"dims": [1 << 31, 1 << 31, 4]}, CorruptError),
        ("a shape of 2^64 values", {"dims": [1 << 32, 1 << 32, 4]}, CorruptError),
        ("2^57 values", {"dims": [1 << 57, 1, 4]}, Error),
        ("a size of 2^63", {"dims": [1 << 63, 3, 4]}, CorruptError),
        ("a size of 2^62", {"dims": [1 << 62, 0, 4]}, CorruptError),
        ("a million tensors", {"tensors": 1_000_000}, CorruptError),
        ("2^60 tensors", {"tensors": 1 << 60}, LimitError),
        ("a million tensors of nothing", {"tensors": 1_000_000, "shared": b"\0", "own": b"\0"}, CorruptError),
        ("more segments than tensors", {"segments": 3}, CorruptError),
        ("2^60 segments", {"segments": 1 << 60}, CorruptError),
        ("no segment", {"segments": 0, "members": b"\0", "order": b"\0", "pieces": b"\0", "has base": b"\0",
                        "pipelines": b"\0", "lengths": b"\0"}, CorruptError),
        ("a segment of no tensor", {"members": [0], "order": []}, CorruptError),
        ("a segment of one tensor, one of none", {"segments": 2, "members": [2, 0]}, CorruptError),
        ("a segment of too many tensors", {"members": [3], "order": [0, 0, 0]}, CorruptError),
        ("a segment of 2^61 tensors", {"members": [1 << 61]}, CorruptError),
        ("a tensor left out", {"members": [1], "order": [0]}, CorruptError),
        ("a tensor twice", {"order": [0, 1]}, CorruptError),
        ("a tensor before the first", {"order": [1, 2]}, CorruptError),
        ("a tensor after the last", {"order": [0, 2]}, CorruptError),
        ("a tensor far after the last", {"order": [0, (1 << 62) - 2]}, CorruptError),
        ("blocks of 68 MiB", {"pieces": [16]}, CorruptError),
        ("blocks of 2^62 bytes", {"pieces": [1 << 40]}, CorruptError),
        ("a pipeline that is not there", {"pipelines": [1]}, CorruptError),
        ("a block too long", {"lengths": [43]}, CorruptError),
        ("a block too short", {"lengths": [41]}, CorruptError),
        ("a block of 2^61 bytes", {"lengths": [1 << 61]}, CorruptError),
        ("a block of 2^63 bytes", {"lengths": [1 << 63]}, CorruptError),
        ("a column of three bytes", {"dtypes": b"\3" + bytes(6)}, CorruptError),
        ("a column of 16 bytes", {"dtypes": b"\x20" + bytes(32)}, CorruptError),
        ("a column without its value", {"lengths": b"\x12\2"}, CorruptError),
        ("a column of no width for all", {"dtypes": b"\x10"}, CorruptError),
        ("a byte too many", {"lengths": column([42]) + b"\0"}, CorruptError),
    ]:  # fmt: skip
        yield Evil(f"columns: {name}", in_columns(changes), error)
    for name, head in [
        ("no JSON", b"{"), ("a list", []), ("not UTF-8", b"\xff"), ("an unknown field", {**HEAD, "more": 1}),
        ("no writer", {k: v for k, v in HEAD.items() if k != "writer"}), ("gone of numbers", {**HEAD, "gone": [1]}),
        ("metadata of numbers", {**HEAD, "metadata": {"a": 1}}), ("a tree of numbers", {**HEAD, "tree": 1}),
        ("an alias of itself", {**HEAD, "aliases": {"0": 0}}), ("an alias of another shape", {**HEAD, "aliases": {"1": 0}}),
        ("an alias of nothing", {**HEAD, "aliases": {"7": 0}}), ("a match of nothing", {**HEAD, "matches": {"7": []}}),
        ("a match of itself", {**HEAD, "matches": {"0": ["w", "float32", [2, 3]]}}), ("null", None),
        ("a pipeline without a base", {**HEAD, "pipelines": [[{"id": "context-delta"}]]}),
        ("deep", {**HEAD, "method": json.loads("[" * 30 + "]" * 30)}),
    ]:  # fmt: skip
        yield Evil(f"columns: head: {name}", in_columns({}, head))
    many = 300_000
    bomb = {
        "tensors": many, "shared": [0] + [4000] * (many - 1), "own": [4000] + [3] * (many - 1),
        "names": b"x" * 4000 + b"".join(b"%03x" % (i % 4096) for i in range(many - 1)),
    }  # fmt: skip
    yield Evil("columns: 300 000 names of 4000 characters in 1.5 MB", in_columns(bomb), LimitError)
    whole = digest(digest(bytes(24)) + digest(bytes(16)))
    for name, digests in [
        ("none", b""), ("half of the identity", bytes(8)), ("no segment's", bytes(16)), ("no block's", bytes(16) + whole),
        ("another segment's", bytes(16) + digest(b"") + digest(PAYLOAD)[:8]),
        ("another block's", bytes(16) + whole + bytes(8)),
        ("more behind", bytes(16) + whole + digest(PAYLOAD)[:8] + b"\1"),
    ]:  # fmt: skip
        yield Evil(f"columns: digests: {name}", in_columns({}, digests=digests))
    for name, stored in [
        ("nothing", b""), ("longer than it is", put_varint(1 << 40)), ("an endless number", b"\xff" * 20),
        ("no frame", put_varint(3) + b"abc"), ("a frame that claims 1 GiB", put_varint(12) + _zeros_frame(1 << 30)[4:16]),
        ("a frame of many zeros", put_varint(len(_zeros_frame(16 << 20)) - 4) + _zeros_frame(16 << 20)[4:]),
        ("a frame with magic", put_varint(len(_zeros_frame(200))) + _zeros_frame(200)),
        ("a frame and more", put_varint(30) + _zeros_frame(200)[4:] + bytes(40)),
    ]:  # fmt: skip
        yield Evil(f"columns: frame: {name}", seal_columns(bytes(200), stored=stored))


KINDS = (headers, footers, frames, documents, types, tensors, segments, aliases, stages, blocks, bombs, columns)


def collection() -> list[Evil]:
    return [evil for kind in KINDS for evil in kind()]


# ---- the tests -------------------------------------------------------------------------------------------------


def _error(evil: Evil) -> Error | None:
    try:
        nz.decompress(evil.data, base=evil.base, threads=1)
    except Error as error:
        return error
    return None


def refuse(evil: Evil) -> None:
    """Raises AssertionError unless `evil` is refused as it should be."""
    error = _error(evil)
    assert error is not None, f"{evil.name}: accepted"
    assert isinstance(error, evil.error), f"{evil.name}: {type(error).__name__}: {str(error)[:500]}"
    assert len(str(error)) < 20_000, f"{evil.name}: a message of {len(str(error))} characters"
    str(error).encode()


def test_the_file_they_are_made_from_is_good() -> None:
    assert set(nz.decompress(seal(DOCUMENT, BLOCKS))) == {"w", "n", "tied"}
    assert {name: array.shape for name, array in nz.decompress(in_columns({})).items()} == {"w": (2, 3), "v": (4,)}
    padded = in_columns(
        {}, digests=bytes(16) + digest(digest(bytes(24)) + digest(bytes(16))) + digest(PAYLOAD)[:8] + bytes(99)
    )
    assert set(nz.decompress(padded)) == {"w", "v"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_hostile_files_are_refused_without_taking_memory(kind: Callable[[], Iterator[Evil]]) -> None:
    for evil in kind():
        tracemalloc.start()
        try:
            refuse(evil)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < (64 << 20) + 64 * evil.data.__len__(), f"{evil.name}: took {peak >> 20} MiB"


@pytest.mark.parametrize(
    ("ending", "names"),
    [(".safetensors", ["__metadata__", "a"]), (".npz", ["a\0b", "a\0c"]), (".npz", ["a.npy", "a"])],
)
def test_names_that_a_format_would_confuse(ending: str, names: list[str], tmp_path: Path) -> None:
    archive = nz.compress({name: np.full(2, i, np.float32) for i, name in enumerate(names)})
    archive.save(tmp_path / "a.nz")
    with pytest.raises(nz.errors.UsageError, match=r"write|cannot hold"):
        nz.decompress_file(tmp_path / "a.nz", tmp_path / f"a{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nz"]


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_names_are_never_paths(ending: str, tmp_path: Path) -> None:
    names = ["../x", "/abs/x", "C:\\x", "..\\x", "a/../../x", "", ".", "x" * 4000, "line\nbreak", "\x1b[31m"]
    archive = nz.compress({name: np.full(2, i, np.float32) for i, name in enumerate(names)})
    archive.save(tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / f"a{ending}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.nz", f"a{ending}"}


def test_there_are_enough_of_them() -> None:
    names = [evil.name for evil in collection()]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


def test_within_an_address_space_of_1_gib() -> None:
    """Each in a fork that may map 1 GiB: what grows is resident memory as the kernel counts it."""
    report = measure(every=4)
    assert report["most_growth_mib"] < 64, report["worst_growth"]


def measure(every: int) -> dict[str, Any]:
    child = subprocess.run([sys.executable, __file__, str(every)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout)


@pytest.mark.long
def test_measure(tmp_path: Path) -> None:
    """Times and growth of each, written down (NEARZIP_RESULTS: where); the time is asserted on a quiet machine only."""
    report = measure(every=1)
    folder = Path(os.environ.get("NEARZIP_RESULTS", tmp_path))
    (folder / "hostile.json").write_text(json.dumps(report, indent=1) + "\n")
    assert report["most_ms"] < 1000, report["slowest"]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_growth(evil: Evil) -> tuple[float, float]:
    """Milliseconds (processor) and MiB that refusing takes, in a fork of its own."""
    into, out = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = _resident()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            began = time.process_time()  # of the processor: other processes have no part in it
            refuse(evil)
            took = (time.process_time() - began) * 1000
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
            os.write(out, json.dumps([took, (peak - before) / (1 << 20)]).encode())
            os._exit(0)
        except BaseException as error:
            os.write(out, json.dumps(repr(error)[:500]).encode())
            os._exit(1)
    os.close(out)
    with os.fdopen(into, "rb") as stream:
        said = json.loads(stream.read() or b'"died"')
    _, status = os.waitpid(child, 0)
    if status:
        raise AssertionError(f"{evil.name}: {said}")
    return said[0], said[1]


def _main() -> None:
    evils = collection()
    refuse(evils[0])  # imports are done
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    rows = [(evil.name, len(evil.data), *_peak_growth(evil)) for evil in evils[:: int(sys.argv[1])]]
    slowest, worst = max(rows, key=lambda r: r[2]), max(rows, key=lambda r: r[3])
    print(json.dumps({
        "files": len(rows), "address_space_mib": 1024,
        "most_ms": round(slowest[2], 1), "slowest": slowest[0],
        "over_100_ms": [[r[0], round(r[2], 1)] for r in rows if r[2] > 100],
        "most_growth_mib": round(worst[3], 1), "worst_growth": worst[0],
        "median_ms": round(sorted(r[2] for r in rows)[len(rows) // 2], 2),
    }))  # fmt: skip


if __name__ == "__main__":
    _main()
