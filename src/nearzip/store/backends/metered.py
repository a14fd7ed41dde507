"""HTTP connections whose every byte counts: what a host sends is bounded in bytes and in time, headers included.

`http.client` reads on for as long as a host sends "100 Continue", trailers, or lines of a chunk's extension, and waits
again after each byte. Here the bytes are counted where they leave the socket.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request
from typing import Any, cast

from nearzip.errors import LimitError

__all__ = ["Response", "handlers"]

#: Bytes of everything before a body: status lines, headers, interim responses (100 Continue).
MAX_HEAD_BYTES = 256 << 10
#: Bytes of a body's chunk sizes, extensions and trailers, besides as many bytes as the body itself has.
_OVERHEAD_BYTES = 64 << 10
#: A host that sends fewer bytes in the time of a time-out, while more are expected, is too slow.
_MIN_BYTES = 1024
_FOREVER = 1e9


class _Metered(io.RawIOBase):
    """The bytes of a connection, counted."""

    def __init__(self, raw: io.RawIOBase, timeout: float | None):
        self._raw = raw
        self._timeout = _FOREVER if timeout is None else timeout
        self._left = MAX_HEAD_BYTES
        self._what = "before its response"
        self._deadline: float | None = time.monotonic() + self._timeout
        self._since, self._n_since = time.monotonic(), 0

    def expect_body(self, n_bytes: int) -> None:
        """After the head: allow for so many bytes of content, and for as long as they keep coming."""
        self._left = 2 * n_bytes + _OVERHEAD_BYTES
        self._what = "for a file of that length"
        self._deadline = None
        self._since, self._n_since = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._check_time()
        n = self._raw.readinto(buffer)
        self._left -= n or 0
        self._n_since += n or 0
        if self._left < 0:
            raise LimitError(f"the host sends more bytes than it may {self._what}")
        return cast("int | None", n)

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            raise TimeoutError("the host does not finish its response")
        if now - self._since > self._timeout:
            if self._n_since < _MIN_BYTES:
                raise TimeoutError(f"the host sent {self._n_since} bytes in {now - self._since:.0f} s")
            self._since, self._n_since = now, 0

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """A response. `expect_body` has to be called before the body is read."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self._metered = _Metered(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self._metered)

    def expect_body(self, n_bytes: int) -> None:
        """The caller is going to read up to so many bytes of content."""
        self._metered.expect_body(n_bytes)


class _Connection(http.client.HTTPConnection):
    response_class = Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = Response


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request)


def handlers() -> tuple[urllib.request.BaseHandler, ...]:
    """For `urllib.request.build_opener`."""
    return _HttpHandler(), _HttpsHandler()
