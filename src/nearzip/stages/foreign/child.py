"""Foreign codecs in a child process with limits: they crash, hang or take memory on bytes that no encoder wrote.

One child serves the interpreter. It is started at the first request, replaced when it dies, and ends with the
interpreter: at exit, or when its input ends because the parent is gone. A forked copy of the parent starts its own.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.errors import CorruptError, Error, LimitError, missing_extra

__all__ = ["CrashError", "Foreign", "run"]

_LENGTH = struct.Struct("<I")
#: Bytes of the text in front of a response; an error is the longest, and cut to 500 characters.
_MAX_TEXT = 1 << 16
_SCRIPT = Path(__file__).with_name("worker.py")
#: Memory beyond what the child has: so much, and so many times the larger of input and output.
_FREE_MEMORY, _MEMORY_FACTOR = 256 << 20, 32
#: Processor seconds: so many, and one for so many bytes. Elapsed time may be ten times as long.
_FREE_SECONDS, _BYTES_A_SECOND = 20, 200_000
#: Elsewhere (Windows) pipes cannot be waited for with a time-out; there a timer's thread ends a child that hangs.
_CAN_POLL = hasattr(select, "poll")


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
        self._deadline = 0.0
        # -I: neither the current folder nor the environment decide what the child imports; the parent's path does.
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own script, no shell
                [sys.executable, "-I", str(_SCRIPT)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except (OSError, MemoryError) as error:
            raise Error(f"cannot start the process in which foreign codecs run, {sys.executable!r}: {error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout.fileno()
        if _CAN_POLL:
            os.set_blocking(self._input, False)
            os.set_blocking(self._output, False)
        self._first: dict[str, Any] | None = {"path": [place for place in sys.path if place]}

    def _wait_for(self, stream: int, event: int) -> None:
        """Until the pipe is ready, or the other end closed. Raises TimeoutError at the deadline."""
        poll = select.poll()
        poll.register(stream, event)
        if not poll.poll(max(0.0, 1000 * (self._deadline - time.monotonic()))):
            raise TimeoutError

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while len(rest):
            if _CAN_POLL:
                self._wait_for(self._input, select.POLLOUT)
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:  # less space than the write takes at least
                time.sleep(0.001)

    def _read(self, length: int) -> bytes:
        pieces = []
        while length:
            if _CAN_POLL:
                self._wait_for(self._output, select.POLLIN)
            piece = os.read(self._output, length)
            if not piece:
                raise EOFError
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _send(self, document: dict[str, Any], data: bytes) -> None:
        text = json.dumps({**document, "size": len(data)}).encode()
        self._write(_LENGTH.pack(len(text)) + text)
        self._write(data)

    def _receive(self, most: int) -> tuple[dict[str, Any], bytes]:
        # Part of what the child does is under the control of the bytes that it decodes.
        length = _LENGTH.unpack(self._read(_LENGTH.size))[0]
        if length > _MAX_TEXT:
            raise EOFError
        document = json.loads(self._read(length))
        if not 0 <= document["size"] <= most:
            raise EOFError
        return document, self._read(document["size"])

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """The elapsed time that everything inside may take together."""
        self._deadline = time.monotonic() + seconds
        if _CAN_POLL:
            yield
            return
        clock = threading.Timer(seconds, self._stop)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _stop(self) -> None:
        self.late = True
        self.process.kill()

    def request(self, request: dict[str, Any], data: bytes, most: int, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Raises EOFError or OSError if the child died or is late, ValueError for a malformed response."""
        with self._limited(seconds):
            try:
                if self._first is not None:
                    self._send(self._first, b"")
                    self._first = None
                self._send(request, data)
                return self._receive(most)
            except TimeoutError:
                self.late = True
                raise

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()

    def abandon(self) -> None:
        """In a forked copy: let go of the parent's child without ending it."""
        self.process.returncode = 0
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


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
    return result


def _request(
    library: Foreign, request: dict[str, Any], data: bytes, most: int, seconds: float
) -> tuple[dict[str, Any], bytes]:
    global _child
    with _lock:
        while True:
            fresh = _child is None
            if _child is None:
                _child = _Child()
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
