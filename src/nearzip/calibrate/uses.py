"""Records which weights a network multiplies its inputs with, while it runs.

PyTorch's functions are watched, not modules, so that attention, tied weights and hand-written layers are seen as well.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
class Vectors:
    """Inputs of a matrix, or gradients at its outputs: `groups` times `n` vectors of `width` numbers.

    `take` returns those at some places, shape (groups, places, width); all of them for None.
    """

    groups: int
    n: int
    width: int
    take: Callable[[Tensor | None], Tensor]


@dataclass(frozen=True)
class Use:
    """One multiplication: the piece, and how its inputs and its outputs' gradients become columns and rows.

    Parameters
    ----------
    piece : Piece
    inputs : Vectors or None
        The columns' moments are theirs.
    indices : tensor of integers or None
        In their place: the rows that an embedding looked up.
    output : tensor
        As the network goes on with it.
    split : callable
        From a gradient of `output` to vectors; the outputs are the matrix's rows, or an embedding's columns.
    bias : str or None
        The parameter that is added to the outputs.
    """

    piece: Piece
    inputs: Vectors | None
    indices: Tensor | None
    output: Tensor
    split: Callable[[Tensor], Vectors]
    bias: str | None = None


@dataclass(frozen=True)
class Scaling:
    """A layer norm: names of its weight and bias, its inputs as vectors, and its output."""

    weight: str | None
    bias: str | None
    inputs: Vectors
    output: Tensor


Report = Callable[[Use | Scaling], None]


class _Watcher:
    """`report` may be set to None: then uses are no longer reported."""

    def __init__(self, names: Mapping[int, str], report: Report | None):
        self._names, self.report = names, report

    def _report(self, use: Use | Scaling) -> None:
        if self.report is not None:
            self.report(use)

    def piece_of(self, weight: Any, turned: bool = False) -> Piece | None:
        """The parameter that `weight` is, or that it is some rows of."""
        if not isinstance(weight, Tensor):
            return None
        if id(weight) in self._names:
            return Piece(self._names[id(weight)], 0, weight.shape[0], turned=turned)
        whole = weight._base
        if whole is None or id(whole) not in self._names or weight.shape[1:] != whole.shape[1:]:
            return None
        per_row = math.prod(whole.shape[1:])
        begin, rest = divmod(int(weight.storage_offset()) - int(whole.storage_offset()), max(1, per_row))
        if rest or weight.stride() != whole.stride():
            return None
        return Piece(self._names[id(whole)], begin, begin + weight.shape[0], turned=turned)

    def linear(self, piece: Piece, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        inputs = _last_dimension(input.detach())
        self._report(Use(piece, inputs, None, output, _last_dimension, self._names.get(id(bias))))

    def addmm(self, piece: Piece, output: Tensor, input: Tensor, mat1: Tensor, *rest: Any, **more: Any) -> None:
        inputs = _last_dimension(mat1.detach())
        self._report(Use(piece, inputs, None, output, _last_dimension, self._names.get(id(input))))

    def embedding(self, piece: Piece, output: Tensor, input: Tensor, *rest: Any, **more: Any) -> None:
        self._report(Use(piece, None, input.flatten(), output, _last_dimension))

    def convolution(
        self,
        piece: Piece,
        output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        dimensions = weight.dim() - 2

        def batched(values: Tensor) -> Tensor:
            return values if values.dim() == dimensions + 2 else values[None]

        def by_group(rows: Tensor) -> Tensor:
            # (n, channels * kernel) -> by group; the channels of a group are adjacent.
            return rows.reshape(len(rows), groups, -1).transpose(0, 1)

        images = batched(input.detach())
        n = len(images) * math.prod(batched(output).shape[2:])

        def columns(at: Tensor | None) -> Tensor:
            return by_group(patches(images, weight.shape[2:], stride, padding, dilation, at))

        def split(gradient: Tensor) -> Vectors:
            positions = batched(gradient).flatten(2)

            def rows(at: Tensor | None) -> Tensor:
                if at is None:
                    return by_group(positions.transpose(1, 2).flatten(0, 1))
                at, length = at.to(positions.device), positions.shape[2]
                return by_group(positions[torch.div(at, length, rounding_mode="floor"), :, at % length])

            return Vectors(groups, n, weight.shape[0] // groups, rows)

        width = math.prod(weight.shape[1:])
        piece, inputs = replace(piece, groups=groups), Vectors(groups, n, width, columns)
        self._report(Use(piece, inputs, None, output, split, self._names.get(id(bias))))

    def layer_norm(
        self,
        output: Tensor,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *rest: Any,
        **more: Any,
    ) -> None:
        if weight is not None and weight.dim() == 1:
            names = self._names.get(id(weight)), self._names.get(id(bias))
            self._report(Scaling(*names, _last_dimension(input.detach()), output))


def _last_dimension(values: Tensor) -> Vectors:
    rows = values.flatten(0, -2)

    def take(at: Tensor | None) -> Tensor:
        return (rows if at is None else rows[at.to(rows.device)])[None]

    return Vectors(1, len(rows), rows.shape[-1], take)


@dataclass(frozen=True)
class _Watched:
    """A function of PyTorch: where its weight stands among its arguments, and what reports a use of it."""

    function: Callable[..., Any]
    watcher: _Watcher
    place: int
    keyword: str
    see: Callable[..., None]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        piece = self._piece(arguments, named)
        if piece is None:
            return self.function(*arguments, **named)
        if torch.is_grad_enabled() and self._passes_on(arguments, named):
            # Nobody asks for the weight's own gradient, which would take a third of the pass back.
            arguments = tuple(each.detach() if i == self.place else each for i, each in enumerate(arguments))
            named = {name: each.detach() if name == self.keyword else each for name, each in named.items()}
        output = self.function(*arguments, **named)
        with torch.no_grad():
            self.see(piece, output, *arguments, **named)
        return output

    def _piece(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Piece | None:
        weight = arguments[self.place] if len(arguments) > self.place else named.get(self.keyword)
        turned = self.keyword == "mat2"
        piece = self.watcher.piece_of(weight, turned)
        if piece is None or weight is None or weight.dim() < 2:
            return None
        scaled = {"alpha", "beta"} & named.keys()
        return None if turned and scaled else piece

    def _passes_on(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
        """Whether the output has a gradient without the weight's: then its inputs have one."""
        before = "mat1" if self.keyword == "mat2" else "input"
        inputs = named[before] if before in named else arguments[self.place - 1]
        return isinstance(inputs, Tensor) and inputs.requires_grad


def _seen(function: Callable[..., Any], see: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        output = function(*arguments, **named)
        with torch.no_grad():
            see(output, *arguments, **named)
        return output

    return call


@contextlib.contextmanager
def watching(names: Mapping[int, str], report: Report) -> Iterator[_Watcher]:
    """Report every use of the parameters whose `id` is in `names`, as long as the context lasts.

    Parameters whose uses are reported may get no gradient of their own. Compiled and scripted networks call nothing
    that can be watched.
    """
    watcher = _Watcher(names, report)
    watched: list[tuple[Any, str, int, str, Callable[..., None]]] = [
        (functional, "linear", 1, "weight", watcher.linear),
        (functional, "embedding", 1, "weight", watcher.embedding),
        (functional, "conv1d", 1, "weight", watcher.convolution),
        (functional, "conv2d", 1, "weight", watcher.convolution),
        (functional, "conv3d", 1, "weight", watcher.convolution),
        (torch, "addmm", 2, "mat2", watcher.addmm),
    ]
    with _ONE_AT_A_TIME:
        originals = [(module, name, getattr(module, name)) for module, name, *_ in watched]
        norm = functional.layer_norm
        try:
            for (module, name, original), (_, _, place, keyword, see) in zip(originals, watched, strict=True):
                setattr(module, name, _Watched(original, watcher, place, keyword, see))
            functional.layer_norm = _seen(norm, watcher.layer_norm)
            yield watcher
        finally:
            for module, name, original in originals:
                setattr(module, name, original)
            functional.layer_norm = norm
