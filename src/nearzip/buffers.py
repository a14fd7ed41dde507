"""Memory for large arrays: in large pages, and used again, because fresh pages cost as much time as filling them."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["WriteBuffer", "borrowed_buffer", "buffer_for", "release_buffers"]

Array = NDArray[Any]

#: Linux backs memory by pages of this size where a large array starts at such a boundary.
_LARGE_PAGE = 2 << 20
#: The size of most blocks, and the largest buffer that is kept.
_BLOCK_BYTES, _MAX_KEPT = 4 << 20, 64 << 20
#: Free buffers: of blocks, 64 MiB in all, and one that is larger, such as that of an archive.
_free_blocks: deque[Array] = deque(maxlen=16)
_free_large: deque[Array] = deque(maxlen=1)


def _trim_of_libc() -> Callable[[int], int] | None:
    try:
        return cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (AttributeError, OSError, TypeError):  # another allocator, or Windows
        return None


_trim = _trim_of_libc()


class _Lent:
    """Owns a buffer for the arrays that show it; it is free again when the last of them is gone."""

    def __init__(self, raw: Array, give_back: Callable[[Array], None]) -> None:
        self._raw, self._give_back = raw, give_back
        self.__array_interface__ = raw.__array_interface__

    def __del__(self) -> None:
        self._give_back(self._raw)


def _at_large_page(n_bytes: int) -> Array:
    raw = np.empty(n_bytes + _LARGE_PAGE, np.uint8)
    start = -raw.ctypes.data % _LARGE_PAGE
    return raw[start : start + n_bytes]


def _lent(n_bytes: int) -> Array:
    """A buffer of `n_bytes` or more: a free one, unless it is far larger."""
    free, size = (_free_blocks, _BLOCK_BYTES) if n_bytes <= _BLOCK_BYTES else (_free_large, n_bytes)
    try:
        raw = free.pop()
    except IndexError:
        raw = _at_large_page(size)
    if not size <= raw.size <= 2 * size:
        raw = _at_large_page(size)
    return np.asarray(_Lent(raw, free.append))


def buffer_for(n: int, dtype: np.dtype[Any] | type[np.generic]) -> Array:
    """An uninitialised array, shape (n,).

    Large ones start at the boundary of a large page: taking 4 MiB in small pages cost 1.4 to 2 ms where filling them
    takes 0.2, in large ones 0.7. Up to 64 MiB come from a free buffer if there is one.
    """
    dtype = np.dtype(dtype)
    n_bytes = n * dtype.itemsize
    if n_bytes < _LARGE_PAGE:
        return np.empty(n, dtype)
    return (_lent if n_bytes <= _MAX_KEPT else _at_large_page)(n_bytes)[:n_bytes].view(dtype)


class _OfThread(threading.local):
    """Buffers that a thread keeps for its next block."""

    def __init__(self) -> None:
        self.free: list[Array] = []


_of_thread = _OfThread()
_MAX_FREE, _LARGEST_FREE = 3, 16 << 20


@contextlib.contextmanager
def borrowed_buffer(n: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    """As `buffer_for`, for the length of a block: the thread then uses the memory again, so keep no reference to it."""
    n_bytes = n * dtype.itemsize
    buffer = _of_thread.free.pop() if _of_thread.free else np.empty(0, np.uint8)
    if buffer.size < n_bytes:
        buffer = buffer_for(n_bytes, np.uint8)
    try:
        yield buffer[:n_bytes].view(dtype)
    finally:
        if buffer.size <= _LARGEST_FREE and len(_of_thread.free) < _MAX_FREE:
            _of_thread.free.append(buffer)


def release_buffers() -> None:
    """Give free buffers back to the system: after work that took many, where memory counts more than the next one.

    With glibc, what its allocator holds as well: of a network of 50 MB that was compressed by two threads, it kept 40.
    """
    _free_blocks.clear()
    _free_large.clear()
    _of_thread.free.clear()
    if _trim is not None:
        _trim(0)


class WriteBuffer:
    """Bytes that are appended, in large pages: `io.BytesIO` takes four times as long to grow.

    Parameters
    ----------
    expected : int
        Bytes that are reserved. The system provides memory when they are written.
    """

    def __init__(self, expected: int) -> None:
        self._buffer = buffer_for(expected, np.uint8)
        self._size = 0

    def write(self, data: bytes, /) -> None:
        end = self._size + len(data)
        if end > self._buffer.size:
            larger = buffer_for(max(end, 2 * self._buffer.size), np.uint8)
            larger[: self._size] = self._buffer[: self._size]
            self._buffer = larger
        self._buffer[self._size : end] = np.frombuffer(data, np.uint8)
        self._size = end

    def written(self) -> Array:
        """The bytes, shape (n,), read-only. They are copied if the buffer is more than twice as large."""
        written = self._buffer[: self._size]
        if 2 * self._size < self._buffer.size:
            written = written.copy()
        written.setflags(write=False)
        return written
