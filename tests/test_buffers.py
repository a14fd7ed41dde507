"""Memory that arrays are made in: used again when nobody holds it any more, and never before."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import nearzip as nz
from nearzip.buffers import buffer_for

SIZES = [0, 1, 1000, 600_000, 1 << 20, (1 << 20) + 1, 3_000_000, 17_000_000]


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_arrays_have_their_shape_and_can_be_written(n, dtype):
    for _ in range(2):
        buffer = buffer_for(n, dtype)
        assert buffer.shape == (n,)
        assert buffer.dtype == dtype
        buffer[...] = 3
        assert (buffer == 3).all()


@pytest.mark.parametrize("n", [700_000, 3_000_000])
def test_a_view_keeps_its_memory(n):
    buffer = buffer_for(n, np.float32)
    buffer[...] = 1
    view = buffer.reshape(2, -1)[1:].view(np.uint32)
    seen = view.copy()
    del buffer
    others = [buffer_for(n, np.float32) for _ in range(4)]
    for other in others:
        other[...] = 2
        assert not np.may_share_memory(other, view)
    assert np.array_equal(view, seen)


@pytest.mark.parametrize("n", [700_000, 3_000_000])
def test_memory_is_used_again(n):
    buffer = buffer_for(n, np.float32)
    was = address(buffer)
    del buffer
    gc.collect()
    assert address(buffer_for(n, np.float32)) == was


def test_results_that_are_held_stay_as_they_are():
    rng = np.random.default_rng(0)
    versions = [{"w": rng.normal(0, 0.1, 800_000).astype(np.float32)} for _ in range(4)]
    archives = [nz.compress(version, bound=nz.Absolute(1e-3), threads=1) for version in versions]
    del archives[1]  # its memory goes to the next
    archives.append(nz.compress(versions[1], bound=nz.Absolute(1e-3), threads=1))
    for archive in archives:
        again = nz.decompress(archive.to_bytes(), threads=1)
        assert again["w"].tobytes() == archive.restored["w"].tobytes()
