"""Room for large matrices: memory up to a limit, and a temporary file for what goes beyond."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nearzip.fileio import naming_errors
from nearzip.tensors import Array

__all__ = ["Scratch"]

#: Files are at least so large: one holds many matrices, because each costs a descriptor.
_FILE_BYTES = 256 << 20
#: Matrices begin on pages, as large allocations do: the same products must come out.
_PAGE = 4096


@dataclass
class Scratch:
    """Gives room for float32 matrices that live as long as they are used.

    Parameters
    ----------
    memory : int or None
        Bytes given in memory; None: everything. What follows lies in files without a name, in the folder for temporary
        files (`TMPDIR`), whose pages the system writes out when it needs their memory.

    Examples
    --------
    >>> scratch = Scratch(1000)
    >>> scratch.zeros(10, 10).sum(), scratch.zeros(100, 100).sum(), scratch.n_in_files
    (tensor(0.), tensor(0.), 40000)
    """

    memory: int | None = None
    n_in_memory: int = 0
    n_in_files: int = 0
    _file: Array = field(default_factory=lambda: np.zeros(0, np.uint8), repr=False)

    def zeros(self, *shape: int) -> Tensor:
        """Raises Error where the disk has no space left, or no file can be written."""
        n_bytes = 4 * math.prod(shape)
        if self.memory is None or self.n_in_memory + n_bytes <= self.memory:
            self.n_in_memory += n_bytes
            return torch.zeros(shape)
        self.n_in_files += n_bytes
        return torch.from_numpy(self._from_file(n_bytes).view(np.float32).reshape(shape))

    def _from_file(self, n_bytes: int) -> Array:
        if n_bytes > self._file.size:
            self._file = _mapped(max(_FILE_BYTES, n_bytes))
        found, self._file = self._file[:n_bytes], self._file[-(-n_bytes // _PAGE) * _PAGE :]
        return found


def _mapped(n_bytes: int) -> Array:
    """Zeros in a file of its own. The blocks are reserved: a full disk found out later would end the process."""
    folder = os.environ.get("TMPDIR") or tempfile.gettempdir()
    with naming_errors("hold moments", f"{folder} (TMPDIR)"), tempfile.TemporaryFile(prefix="nearzip-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            zeros = bytes(1 << 20)
            for start in range(0, n_bytes, len(zeros)):
                file.write(zeros[: n_bytes - start])
            file.flush()
        return np.memmap(file, np.uint8, "r+", shape=(n_bytes,))
