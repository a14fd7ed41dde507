"""Runs one lossless program over pairs, in the program's environment.

The request (JSON) names the program, two .npy files of unsigned integers (new, base), the rounds to time and the output
file: for each mode, bytes and processor seconds both ways. A mode that does not restore every bit is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.record import timed

Bits = np.ndarray
#: Encodes (new, base) and decodes (bytes, base) of one mode.
Mode = tuple[Callable[[Bits, Bits], bytes], Callable[[bytes, Bits], Bits]]


def _both(encode: Callable[[Bits], bytes], decode: Callable[[bytes, np.dtype[Any]], Bits]) -> dict[str, Mode]:
    """A program that knows no base: on the bits as they are, and on their exclusive or with the base's."""
    return {
        "alone": (lambda new, base: encode(new.copy()), lambda data, base: decode(data, base.dtype)),
        "xor": (lambda new, base: encode(new ^ base), lambda data, base: decode(data, base.dtype) ^ base),
    }


def zstd19() -> dict[str, Mode]:
    import zstandard

    return _both(
        lambda bits: zstandard.ZstdCompressor(level=19).compress(bits.tobytes()),
        lambda data, dtype: np.frombuffer(zstandard.ZstdDecompressor().decompress(data), dtype),
    )


def zipnn() -> dict[str, Mode]:
    from zipnn import ZipNN

    def coder(width: int) -> Any:
        return ZipNN(input_format="byte", bytearray_dtype={2: "bfloat16", 4: "float32"}[width], threads=1)

    return _both(
        lambda bits: bytes(coder(bits.itemsize).compress(bytearray(bits.tobytes()))),
        lambda data, dtype: np.frombuffer(bytes(coder(dtype.itemsize).decompress(bytearray(data))), dtype),
    )


def z4ai() -> dict[str, Mode]:
    import z4ai as program

    names = {2: "bf16", 4: "fp32"}

    def delta(new: Bits, base: Bits) -> bytes:
        packed: bytes = program.compress_delta(new.tobytes(), base.tobytes(), dtype=names[new.itemsize], threads=1)
        return packed

    return {
        "alone": (
            lambda new, base: program.compress(new.tobytes(), dtype=names[new.itemsize], threads=1, effort="max"),
            lambda data, base: np.frombuffer(bytes(program.decompress(data)), base.dtype),
        ),
        "its own delta": (
            delta,
            lambda data, base: np.frombuffer(bytes(program.decompress_delta(data, base.tobytes())), base.dtype),
        ),
    }


def openzl() -> dict[str, Mode]:
    import openzl.ext as zl

    def encode(bits: Bits) -> bytes:
        compressor, context = zl.Compressor(), zl.CCtx()
        compressor.select_starting_graph(zl.graphs.Compress()(compressor))
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        packed: bytes = context.compress([zl.Input(zl.Type.Numeric, bits)])
        return packed

    return _both(
        encode, lambda data, dtype: np.asarray(zl.DCtx().decompress(data)[0].content.as_nparray()).view(dtype).copy()
    )


def pcodec() -> dict[str, Mode]:
    from pcodec import ChunkConfig, standalone

    def decode(data: bytes, dtype: np.dtype[Any]) -> Bits:
        bits: Bits = standalone.simple_decompress(data)
        return bits.view(dtype)

    return _both(lambda bits: standalone.simple_compress(bits, ChunkConfig()), decode)


PROGRAMS: dict[str, Callable[[], dict[str, Mode]]] = {
    "zstd -19": zstd19,
    "ZipNN": zipnn,
    "z4ai": z4ai,
    "OpenZL": openzl,
    "pcodec": pcodec,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "zstd -19": ("zstandard",),
    "ZipNN": ("zipnn", "torch", "safetensors"),
    "z4ai": ("z4ai",),
    "OpenZL": ("openzl",),
    "pcodec": ("pcodec",),
}


def measure(mode: Mode, new: Bits, base: Bits, rounds: int) -> dict[str, Any]:
    """Bytes and speeds of one mode, or the error that the program raises."""
    encode, decode = mode
    try:
        data, encode_s = timed(lambda: encode(new, base), rounds)
        restored, decode_s = timed(lambda: decode(data, base), rounds)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    if restored.tobytes() != new.tobytes():
        return {"error": "does not restore every bit"}
    return {
        "bytes": len(data),
        "encode_mb_s": round(new.nbytes / encode_s / 1e6, 1) if encode_s else None,
        "decode_mb_s": round(new.nbytes / decode_s / 1e6, 1) if decode_s else None,
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    answer: dict[str, Any] = {}
    modes = PROGRAMS[request["program"]]()
    for pair in request["pairs"]:
        new, base = np.load(pair["new"]), np.load(pair["base"])
        answer[pair["name"]] = {name: measure(mode, new, base, request["rounds"]) for name, mode in modes.items()}
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
