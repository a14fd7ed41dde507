"""Runs one lossless program over files, in the program's environment.

The request (JSON) names the program, files with what came before them (or null), and the output file: for each file,
bytes and seconds both ways, alone and against what came before, or the error.
"""

from __future__ import annotations

import json
import lzma
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: Encodes (new, base) and decodes (bytes, base); base is None alone.
Coder = tuple[Callable[[bytes, bytes | None], bytes], Callable[[bytes, bytes | None], bytes]]


def zstd19() -> Coder:
    import zstandard

    def prefix(base: bytes | None) -> Any:
        return None if base is None else zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)

    def encode(new: bytes, base: bytes | None) -> bytes:
        # As the program's --patch-from: the window holds both files.
        window = max(10, (len(new) + len(base or b"")).bit_length())
        found = zstandard.ZstdCompressionParameters.from_level(19, **({"window_log": window} if base else {}))
        return bytes(zstandard.ZstdCompressor(compression_params=found, dict_data=prefix(base)).compress(new))

    def decode(data: bytes, base: bytes | None) -> bytes:
        reader = zstandard.ZstdDecompressor(dict_data=prefix(base), max_window_size=1 << 31)
        return bytes(reader.decompress(data))

    return encode, decode


def alone(encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]) -> Coder:
    """A program that knows no base: with one of the same length, it gets the exclusive or."""

    def both(one: bytes, other: bytes | None) -> bytes:
        import numpy as np

        if other is None:
            return one
        if len(one) != len(other):
            raise ValueError("another length than what came before")
        return bytes((np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes())

    return lambda new, base: encode(both(new, base)), lambda data, base: both(decode(data), base)


def xz() -> Coder:
    return alone(lambda new: lzma.compress(new, preset=9), lzma.decompress)


def zipnn() -> Coder:
    from zipnn import ZipNN

    def coder() -> Any:
        return ZipNN(input_format="byte", bytearray_dtype="float32", threads=1)

    # It changes the bytes that it is given, hence the copies. It frees memory that is not its own where a file does not
    # end with a whole value: such files get up to 3 zeros more, and a byte with their number.
    def encode(new: bytes) -> bytes:
        n_more = -len(new) % 4
        return bytes(coder().compress(bytearray(new + bytes(n_more)))) + bytes([n_more])

    def decode(data: bytes) -> bytes:
        restored = bytes(coder().decompress(bytearray(data[:-1])))
        return restored[: len(restored) - data[-1]]

    return alone(encode, decode)


def z4ai() -> Coder:
    import z4ai as program

    def encode(new: bytes, base: bytes | None) -> bytes:
        if base is None:
            return bytes(program.compress(new, dtype="fp32", threads=1, effort="max"))
        return bytes(program.compress_delta(new, base, dtype="fp32", threads=1))

    def decode(data: bytes, base: bytes | None) -> bytes:
        return bytes(program.decompress(data) if base is None else program.decompress_delta(data, base))

    return encode, decode


def lmzip() -> Coder:
    def run(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "lmz", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError((done.stderr or done.stdout).strip()[-200:])

    def encode(new: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.safetensors").write_bytes(new)
            run("compress", "--quiet", "--threads", "1", f"{folder}/model.safetensors", f"{folder}/packed.lmz")
            return Path(folder, "packed.lmz").read_bytes()

    def decode(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "packed.lmz").write_bytes(data)
            run("decompress", "--quiet", "--threads", "1", f"{folder}/packed.lmz", f"{folder}/out")
            return Path(folder, "out").read_bytes()

    return alone(encode, decode)


PROGRAMS: dict[str, tuple[Callable[[], Coder], tuple[str, ...]]] = {
    "zstd -19": (zstd19, ("zstandard",)),
    "xz -9": (xz, ()),
    "ZipNN": (zipnn, ("zipnn", "torch", "safetensors")),
    "z4ai": (z4ai, ("z4ai",)),
    "lmzip": (lmzip, ("lmzip",)),
}


def measure(coder: Coder, new: bytes, base: bytes | None) -> dict[str, Any]:
    """Bytes and seconds, or the error that the program raises."""
    encode, decode = coder
    try:
        start = time.perf_counter()
        data = encode(new, base)
        middle = time.perf_counter()
        restored = decode(data, base)
        end = time.perf_counter()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    if restored != new:
        return {"error": "does not restore every bit"}
    return {"bytes": len(data), "encode_s": round(middle - start, 3), "decode_s": round(end - middle, 3)}


def _measure_into(answer: Connection, coder: Coder, new: str, base: str | None) -> None:
    answer.send(measure(coder, Path(new).read_bytes(), Path(base).read_bytes() if base else None))


def measure_apart(coder: Coder, new: str, base: str | None) -> dict[str, Any]:
    """The same in a process of its own, so that a program's crash costs one file."""
    context = multiprocessing.get_context("fork")
    ours, answer = context.Pipe(duplex=False)
    process = context.Process(target=_measure_into, args=(answer, coder, new, base))
    process.start()
    answer.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        found = {"error": "crashed"}
    process.join()
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    coder = PROGRAMS[request["program"]][0]()
    answer = {}
    for new, base in request["files"]:
        answer[f"{new}<{base or ''}"] = measure_apart(coder, new, base)
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
