"""Foreign codecs in a child process with limits: they crash, hang or take memory on bytes that no encoder wrote.

One child serves the interpreter. It is started when first needed, replaced when it dies, and ends with the interpreter:
at exit, or when its input ends because the parent is gone. A forked copy of the parent starts one of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.errors import CorruptError, Error, missing_extra

__all__ = ["CrashError", "Foreign", "run"]

_LENGTH = struct.Struct("<I")
#: Bytes of the text in front of an answer; an error is the longest, and cut to 500 characters.
_MOST_TEXT = 1 << 16
_SCRIPT = Path(__file__).with_name("child_worker.py")
#: Memory beyond what the child has: so much, and so many times what goes in or comes out.
_FREE_MEMORY, _MEMORY_FACTOR = 256 << 20, 32
#: Processor seconds: so many, and one for so many bytes. The clock on the wall allows ten times as much.
_FREE_SECONDS, _BYTES_A_SECOND = 20, 200_000


class CrashError(Error):
    """The child died or took too long."""


@dataclass(frozen=True)
class Foreign:
    """A codec: what it is called here, its package, and the extra that installs it."""

    name: str
    package: str
    extra: str


class _Child:
    """A running process; one thread at a time talks to it."""

    def __init__(self) -> None:
        self.late = False
        # -I: neither the current folder nor the environment decide what the child imports; the parent's path does.
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own script, no shell
                [sys.executable, "-I", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise Error(f"cannot start the process in which foreign codecs run, {sys.executable!r}: {error}") from error
        self._first: dict[str, Any] | None = {"path": [place for place in sys.path if place]}

    def _send(self, document: dict[str, Any], data: bytes) -> None:
        stream = self.process.stdin
        assert stream is not None
        text = json.dumps({**document, "size": len(data)}).encode()
        stream.write(_LENGTH.pack(len(text)) + text)
        stream.write(data)
        stream.flush()

    def _receive(self, most: int) -> tuple[dict[str, Any], bytes]:
        stream = self.process.stdout
        assert stream is not None
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        # Part of what the child does is under the control of the bytes that it decodes.
        length = _LENGTH.unpack(head)[0]
        if length > _MOST_TEXT:
            raise EOFError
        document = json.loads(stream.read(length))
        if not 0 <= document["size"] <= most:
            raise EOFError
        data = stream.read(document["size"])
        if len(data) < document["size"]:
            raise EOFError
        return document, data

    def ask(self, request: dict[str, Any], data: bytes, most: int, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Raises EOFError or OSError if the child died, ValueError if it answers nonsense."""
        clock = threading.Timer(seconds, self._stop)
        clock.daemon = True
        clock.start()
        try:
            if self._first is not None:
                self._send(self._first, b"")
                self._first = None
            self._send(request, data)
            return self._receive(most)
        finally:
            clock.cancel()

    def _stop(self) -> None:
        self.late = True
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:
                continue
        self.process.wait()

    def abandon(self) -> None:
        """In a forked copy: let go of the parent's child without ending it."""
        self.process.returncode = 0
        streams: tuple[Any, ...] = (self.process.stdin, self.process.stdout)
        for stream in streams:
            # Not the buffer around it, which would first write what the parent has not sent yet.
            stream.raw.close()


_lock = threading.Lock()
_child: _Child | None = None


def run(library: Foreign, action: str, data: bytes, most: int, **settings: Any) -> bytes:
    """Let the child encode or decode.

    Parameters
    ----------
    library : Foreign
    action : "encode" or "decode"
    data : bytes
    most : int
        Most bytes that may come back.
    settings
        Numbers and strings for the codec.

    Raises
    ------
    MissingExtraError
        Its package is not installed.
    CorruptError, Error
        The codec refuses the bytes (decoding, encoding).
    CrashError
        It died on them, or took more than it may.
    """
    size = max(len(data), most)
    seconds = _FREE_SECONDS + size // _BYTES_A_SECOND
    limits = {"memory": _FREE_MEMORY + _MEMORY_FACTOR * size, "seconds": seconds}
    request = {"call": f"{library.name} {action}", "most": most, **limits, **settings}
    document, result = _ask(library, request, data, most, 10.0 * seconds)
    if "missing" in document:
        raise missing_extra(library.package, library.extra, f"the codec {library.name}")
    if "error" in document and action == "encode":
        raise Error(f"{library.name} cannot encode: {document['error']}")
    if "error" in document:
        raise CorruptError(f"{library.name}: {document['error']}")
    return result


def _ask(
    library: Foreign, request: dict[str, Any], data: bytes, most: int, seconds: float
) -> tuple[dict[str, Any], bytes]:
    global _child
    with _lock:
        while True:
            fresh = _child is None
            if _child is None:
                _child = _Child()
            try:
                return _child.ask(request, data, most, seconds)
            except (EOFError, OSError, ValueError, KeyError, TypeError):
                late = _child.late
                _end()
                # One that ran before may have died of something else: these bytes get a second child.
                if fresh or late:
                    raise CrashError(f"{library.name}: its process died on these bytes, or took too much") from None
            except BaseException:
                # Interrupted between question and answer: the next answer would be this one's.
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
