"""Foreign codecs in a child process with limits: they crash, hang or take memory on bytes that no encoder wrote.

One child serves the interpreter. It is started at the first request, replaced when it dies, and ends with the
interpreter: at exit, or when its input ends because the parent is gone. A forked copy of the parent starts its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.childprocess import ChildProcess
from nearzip.errors import CorruptError, Error, LimitError, missing_extra

__all__ = ["CrashError", "Foreign", "run"]

#: Bytes of the text in front of a response; an error is the longest, and cut to 500 characters.
_MAX_TEXT = 1 << 16
_SCRIPT = Path(__file__).with_name("worker.py")
#: Memory beyond what the child has: so much, and so many times the larger of input and output.
_FREE_MEMORY, _MEMORY_FACTOR = 256 << 20, 32
#: Processor seconds: so many, and one for so many bytes. Elapsed time may be ten times as long.
_FREE_SECONDS, _BYTES_A_SECOND = 20, 200_000
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class CrashError(Error):
    """The child died or took too long."""


@dataclass(frozen=True)
class Foreign:
    """A codec: what it is called here, its package, and the extra that installs it."""

    name: str
    package: str
    extra: str


_lock = threading.Lock()
_child: ChildProcess | None = None


def run(library: Foreign, action: str, data: bytes, most: int, **settings: Any) -> bytes:
    """Let the child encode or decode.

    Parameters
    ----------
    library : Foreign
    action : "encode" or "decode"
    data : bytes
    most : int
        The maximum number of bytes that may come back.
    settings
        Numbers and strings for the codec.

    Raises
    ------
    MissingExtraError
        Its package is not installed.
    LimitError
        There is too little memory to load its package.
    CorruptError, Error
        The codec refuses the bytes (decoding, encoding).
    CrashError
        It died on them, or exceeded a limit.
    """
    size = max(len(data), most)
    seconds = _FREE_SECONDS + size // _BYTES_A_SECOND
    limits = {"memory": _FREE_MEMORY + _MEMORY_FACTOR * size, "seconds": seconds}
    request = {"call": f"{library.name} {action}", "most": most, **limits, **settings}
    document, result = _request(library, request, data, most, 10.0 * seconds)
    if "missing" in document:
        raise missing_extra(library.package, library.extra, f"the codec {library.name}")
    if "unloaded" in document:
        raise LimitError(f"{library.name}: {library.package} cannot be loaded: {document['unloaded']}")
    if "error" in document and action == "encode":
        raise Error(f"{library.name} cannot encode: {document['error']}")
    if "error" in document:
        raise CorruptError(f"{library.name}: {document['error']}")
    return bytes(result)


def _request(
    library: Foreign, request: dict[str, Any], data: bytes, most: int, seconds: float
) -> tuple[dict[str, Any], memoryview]:
    global _child
    with _lock:
        while True:
            fresh = _child is None
            if _child is None:
                _child = ChildProcess(_SCRIPT, "in which foreign codecs run", _MAX_TEXT, _ENVIRONMENT)
            try:
                return _child.request(request, data, most, seconds)
            except (EOFError, OSError, ValueError, KeyError, TypeError):
                late = _child.late
                _end()
                # One that ran before may have died of something else: these bytes get a second child.
                if fresh or late:
                    raise CrashError(f"{library.name}: its process died on these bytes, or took too much") from None
            except BaseException:
                # Interrupted between request and response: the next response would be to this request.
                _end()
                raise


def _end() -> None:
    global _child
    if _child is not None:
        _child.close()
        _child = None


def _after_fork() -> None:
    global _child, _lock
    # Another thread may have held it.
    _lock = threading.Lock()
    if _child is not None:
        _child.abandon()
        _child = None


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
