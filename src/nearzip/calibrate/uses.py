"""Records which weights a network multiplies its inputs with, while it runs.

PyTorch's functions are watched, not modules, so that attention, tied weights and hand-written layers are seen as well.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nearzip.calibrate.unfolding import patches

__all__ = ["Piece", "Use", "watching"]

#: Watched functions are replaced in PyTorch's own modules, so only one thread at a time may watch.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Piece:
    """A part of a parameter that multiplies as a matrix, or as one matrix for each group.

    Parameters
    ----------
    name : str
        The parameter.
    start, stop : int
        Rows of its first dimension.
    groups : int
        Of a convolution; 1 otherwise.
    turned : bool
        Whether the parameter is inputs by outputs (`addmm`) instead of outputs by inputs.
    """

    name: str
    start: int
    stop: int
    groups: int = 1
    turned: bool = False

    def matrices(self, values: Tensor) -> Tensor:
        """The parameter's values, shape (groups, rows, columns), where rows are outputs. A view where possible."""
        rows = values[self.start : self.stop]
        if self.turned:
            return rows.T[None]
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def put(self, matrices: Tensor, values: Tensor) -> None:
        """Write matrices back into the parameter's values, in place."""
        part = values[self.start : self.stop]
        part.copy_(matrices[0].T if self.turned else matrices.reshape(part.shape))


@dataclass(frozen=True)
class Use:
    """One multiplication: the piece, and how its inputs and its outputs' gradients become columns and rows.

    Parameters
    ----------
    piece : Piece
    inputs : tensor
        Shape (groups, n, columns); or (n,) integers, the rows that an embedding looked up.
    output : tensor
        As the network goes on with it.
    split : callable
        From a gradient of `output` to shape (groups, n, outputs of a group); the outputs are the matrix's rows, or an
        embedding's columns.
    """

    piece: Piece
    inputs: Tensor
    output: Tensor
    split: Callable[[Tensor], Tensor]


Report = Callable[[Use], None]


class _Watcher:
    def __init__(self, names: Mapping[int, str], report: Report):
        self._names, self._report = names, report

    def piece_of(self, weight: Any, groups: int = 1, turned: bool = False) -> Piece | None:
        """The parameter that `weight` is, or that it is some rows of."""
        if not isinstance(weight, Tensor):
            return None
        if id(weight) in self._names:
            return Piece(self._names[id(weight)], 0, weight.shape[0], groups, turned)
        whole = weight._base
        if whole is None or id(whole) not in self._names or weight.shape[1:] != whole.shape[1:]:
            return None
        per_row = math.prod(whole.shape[1:])
        begin, rest = divmod(int(weight.storage_offset()) - int(whole.storage_offset()), max(1, per_row))
        if rest or weight.stride() != whole.stride():
            return None
        return Piece(self._names[id(whole)], begin, begin + weight.shape[0], groups, turned)

    def linear(self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        piece = self.piece_of(weight)
        if piece is not None and weight.dim() == 2:
            self._report(Use(piece, input.flatten(0, -2)[None], output, _last_dimension))

    def addmm(self, output: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, **scale: Any) -> None:
        piece = self.piece_of(mat2, turned=True)
        if piece is not None and piece.stop - piece.start == mat2.shape[0] and not scale:
            self._report(Use(piece, mat1[None], output, _last_dimension))

    def embedding(self, output: Tensor, input: Tensor, weight: Tensor, *rest: Any, **more: Any) -> None:
        piece = self.piece_of(weight)
        if piece is not None:
            self._report(Use(piece, input.flatten(), output, _last_dimension))

    def convolution(
        self,
        output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        piece = self.piece_of(weight, groups)
        if piece is None:
            return
        dimensions = weight.dim() - 2
        batched = input if input.dim() == dimensions + 2 else input[None]
        columns = patches(batched, weight.shape[2:], stride, padding, dilation)
        # (n, channels * kernel) -> by group; the channels of a group are adjacent.
        by_group = columns.reshape(len(columns), groups, -1).transpose(0, 1)

        def split(gradient: Tensor) -> Tensor:
            gradient = gradient if gradient.dim() == dimensions + 2 else gradient[None]
            rows = gradient.movedim(1, -1).flatten(0, -2)
            return rows.reshape(len(rows), groups, -1).transpose(0, 1)

        self._report(Use(piece, by_group, output, split))


def _last_dimension(gradient: Tensor) -> Tensor:
    return gradient.flatten(0, -2)[None]


def _watched(function: Callable[..., Any], see: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        output = function(*arguments, **named)
        with torch.no_grad():
            see(output, *arguments, **named)
        return output

    return call


@contextlib.contextmanager
def watching(names: Mapping[int, str], report: Report) -> Iterator[None]:
    """Report every use of the parameters whose `id` is in `names`, as long as the context lasts.

    Compiled and scripted networks call nothing that can be watched.
    """
    watcher = _Watcher(names, report)
    watched: list[tuple[Any, str, Callable[..., None]]] = [
        (functional, "linear", watcher.linear),
        (functional, "embedding", watcher.embedding),
        (functional, "conv1d", watcher.convolution),
        (functional, "conv2d", watcher.convolution),
        (functional, "conv3d", watcher.convolution),
        (torch, "addmm", watcher.addmm),
    ]
    with _ONE_AT_A_TIME:
        originals = [(module, name, getattr(module, name)) for module, name, _ in watched]
        try:
            for (module, name, original), (_, _, see) in zip(originals, watched, strict=True):
                setattr(module, name, _watched(original, see))
            yield
        finally:
            for module, name, original in originals:
                setattr(module, name, original)
