"""The child process of `child.py`: runs foreign codecs, one request after the other, until its input ends.

A script of its own that imports nothing of nearzip, so that it starts quickly. Both ways: length of a JSON text (u32,
little-endian), the text, and as many bytes as it says.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows has no such limits; the parent's clock remains.
    resource = None  # type: ignore[assignment]

_LENGTH = struct.Struct("<I")


def _sz3_encode(data: bytes, request: dict[str, Any]) -> bytes:
    import numpy as np
    from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

    values = np.frombuffer(data, request["dtype"]).copy()
    config = szConfig((values.size,))
    config.errorBoundMode = szErrorBoundMode.ABS
    config.absErrorBound = request["error"]
    config.cmprAlgo = getattr(szAlgorithm, request["algorithm"])
    config.openmp = False
    return bytes(sz.compress(values, config)[0].tobytes())


def _sz3_decode(data: bytes, request: dict[str, Any]) -> bytes:
    import numpy as np
    from pysz import sz

    packed = np.frombuffer(data, np.uint8).copy()
    return bytes(sz.decompress(packed, np.dtype(request["dtype"]), (request["n"],))[0].tobytes())


def _zfp_encode(data: bytes, request: dict[str, Any]) -> bytes:
    import numpy as np
    import zfpy

    values = np.frombuffer(data, request["dtype"])
    return bytes(zfpy.compress_numpy(values, tolerance=request["error"], write_header=False))


def _zfp_decode(data: bytes, request: dict[str, Any]) -> bytes:
    import numpy as np
    import zfpy

    dtype = np.dtype(request["dtype"])
    kind = zfpy.dtype_to_ztype(dtype)
    # The decoder reads beyond its input where that is damaged; let it read zeros.
    padded = data + bytes(8 * request["n"] * dtype.itemsize + 64)
    found = zfpy._decompress(padded, kind, (request["n"],), tolerance=request["error"])
    return bytes(np.ascontiguousarray(found).tobytes())


def _zfp_images_encode(data: bytes, request: dict[str, Any]) -> bytes:
    """Fields of several shapes, each compressed by itself: their lengths (u32), then their bytes."""
    import numpy as np
    import zfpy

    values = np.frombuffer(data, request["dtype"])
    packed, at = [], 0
    for shape in json.loads(request["shapes"]):
        n = int(np.prod(shape))
        field = np.ascontiguousarray(values[at : at + n].reshape(shape))
        packed.append(bytes(zfpy.compress_numpy(field, **{request["mode"]: request["value"]}, write_header=False)))
        at += n
    return struct.pack(f"<{len(packed)}I", *map(len, packed)) + b"".join(packed)


def _zfp_images_decode(data: bytes, request: dict[str, Any]) -> bytes:
    import numpy as np
    import zfpy

    dtype = np.dtype(request["dtype"])
    found, at = [], 0
    for shape, length in zip(json.loads(request["shapes"]), json.loads(request["lengths"]), strict=True):
        # The decoder reads beyond its input where that is damaged; let it read zeros.
        padded = data[at : at + length] + bytes(8 * int(np.prod(shape)) * dtype.itemsize + 64)
        kind = zfpy.dtype_to_ztype(dtype)
        field = zfpy._decompress(padded, kind, tuple(shape), **{request["mode"]: request["value"]})
        found.append(bytes(np.ascontiguousarray(field).tobytes()))
        at += length
    return b"".join(found)


def _blosc_encode(data: bytes, request: dict[str, Any]) -> bytes:
    import blosc2

    settings = {
        "codec": getattr(blosc2.Codec, request["codec"]),
        "filters": [getattr(blosc2.Filter, request["filter"])],
        "clevel": request["level"],
        "typesize": request["typesize"],
        "nthreads": 1,
    }
    return bytes(blosc2.compress2(data, **settings))


def _blosc_decode(data: bytes, request: dict[str, Any]) -> bytes:
    import blosc2

    # The library takes memory for what the header claims, so the claim is checked first.
    if len(data) < 16 or int.from_bytes(data[4:8], "little") > request["most"]:
        raise ValueError("claims too much")
    return bytes(blosc2.decompress2(data, nthreads=1))


_CALLS: dict[str, Callable[[bytes, dict[str, Any]], bytes]] = {
    "sz3 encode": _sz3_encode,
    "sz3 decode": _sz3_decode,
    "zfp encode": _zfp_encode,
    "zfp decode": _zfp_decode,
    "zfp-images encode": _zfp_images_encode,
    "zfp-images decode": _zfp_images_decode,
    "blosc encode": _blosc_encode,
    "blosc decode": _blosc_decode,
}
_MODULES = {"sz3": "pysz", "zfp": "zfpy", "zfp-images": "zfpy", "blosc": "blosc2"}


def _read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    document = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    data = stream.read(document["size"])
    return (document, data) if len(data) == document["size"] else None


def _write(stream: BinaryIO, document: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps({**document, "size": len(data)}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    stream.write(data)
    stream.flush()


def _limit(memory: int, seconds: int) -> None:
    """Limit bytes and processor seconds, beyond what is used already, where the system has such limits."""
    if resource is None:
        return
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = size + memory
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    except (OSError, ValueError):
        return


def _respond(request: dict[str, Any], data: bytes, out: BinaryIO) -> None:
    codec = request["call"].split()[0]
    try:
        __import__(_MODULES[codec])
    except ModuleNotFoundError as error:
        _write(out, {"missing": str(error)})
        return
    except Exception as error:  # too little memory, say
        _write(out, {"unloaded": f"{type(error).__name__}: {error}"[:500]})
        return
    try:
        _limit(request["memory"], request["seconds"])
        result = _CALLS[request["call"]](data, request)
    except Exception as error:
        _write(out, {"error": f"{type(error).__name__}: {error}"[:500]})
        return
    _write(out, {}, result)


def main() -> None:
    # What a library prints must not get between the responses.
    out = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    first = _read(sys.stdin.buffer)
    if first is None:
        return
    sys.path[:] = first[0]["path"]
    while (found := _read(sys.stdin.buffer)) is not None:
        _respond(*found, out)


if __name__ == "__main__":
    main()
