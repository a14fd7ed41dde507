"""A script of ours in a process of its own: libraries crash, hang or take memory on bytes that no encoder wrote.

Both ways: length of a JSON text (u32, little-endian), the text, and as many bytes as its `size` says.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nearzip.errors import Error

__all__ = ["ChildProcess"]

_LENGTH = struct.Struct("<I")
#: Elsewhere (Windows) pipes cannot be waited for with a time-out; there a timer's thread ends a child that hangs.
_CAN_POLL = hasattr(select, "poll")


class ChildProcess:
    """A running process; one thread at a time talks to it.

    Parameters
    ----------
    script : Path
        What it runs. The first message that it gets is the parent's `path`, which it does not respond to.
    purpose : str
        What it is for, in the error if it cannot be started.
    max_text : int
        Bytes of the text in front of a response.
    env : mapping
        Environment variables besides the parent's.

    Attributes
    ----------
    late : bool
        Whether a request took too long.

    Raises
    ------
    Error
        The process cannot be started.
    """

    def __init__(self, script: Path, purpose: str, max_text: int, env: Mapping[str, str] | None = None) -> None:
        self.late = False
        self._max_text = max_text
        self._deadline = 0.0
        # -I: neither the current folder nor the environment decide what the child imports; the parent's path does.
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own script, no shell
                [sys.executable, "-I", str(script)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
            )
        except (OSError, MemoryError) as error:
            raise Error(f"cannot start the process {purpose}, {sys.executable!r}: {error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout
        if _CAN_POLL:
            os.set_blocking(self._input, False)
            os.set_blocking(self._output.fileno(), False)
        self._first: dict[str, Any] | None = {"path": [place for place in sys.path if place]}

    def _wait_for(self, stream: int, event: int) -> None:
        """Until the pipe is ready, or the other end closed. Raises TimeoutError at the deadline."""
        poll = select.poll()
        poll.register(stream, event)
        if not poll.poll(max(0.0, 1000 * (self._deadline - time.monotonic()))):
            raise TimeoutError

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while len(rest):
            if _CAN_POLL:
                self._wait_for(self._input, select.POLLOUT)
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:  # less space than the write takes at least
                time.sleep(0.001)

    def _read(self, length: int) -> memoryview:
        view, at = np.empty(length, np.uint8).data, 0
        while at < length:
            if _CAN_POLL:
                self._wait_for(self._output.fileno(), select.POLLIN)
            n = self._output.readinto(view[at:])  # type: ignore[attr-defined]
            if n == 0:
                raise EOFError
            at += n or 0
        return view

    def _send(self, document: dict[str, Any], data: bytes | memoryview) -> None:
        text = json.dumps({**document, "size": len(data)}).encode()
        self._write(_LENGTH.pack(len(text)) + text)
        self._write(data)

    def _receive(self, most: int) -> tuple[dict[str, Any], memoryview]:
        # Part of what the child does is under the control of the bytes that it decodes.
        length = _LENGTH.unpack(self._read(_LENGTH.size))[0]
        if length > self._max_text:
            raise EOFError
        document = json.loads(bytes(self._read(length)))
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

    def request(
        self, request: dict[str, Any], data: bytes | memoryview, most: int, seconds: float
    ) -> tuple[dict[str, Any], memoryview]:
        """The response to a request: its document, and at most `most` bytes.

        Raises EOFError or OSError if the child died or is late; ValueError, KeyError or TypeError for a response that
        makes no sense.
        """
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
