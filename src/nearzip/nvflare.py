"""Compressed updates for NVIDIA FLARE: a pair of filters around what clients send."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nearzip.api import compress_quietly, decompress
from nearzip.bounds import Absolute, Bound, Rms, Statistics, parse_bound
from nearzip.errors import BoundError, CorruptError, UsageError, missing_extra
from nearzip.federated.residual import Residual
from nearzip.limits import Limits
from nearzip.tensors import Array

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
except ImportError:
    raise missing_extra("nvflare", "nvflare", "nearzip.nvflare") from None

__all__ = ["Compress", "Decompress"]

_NAME = "nearzip"
#: Tensors with fewer values than this take an eighth of the step, as in `nearzip.federated`.
_SMALL, _FINER = 1000, 8.0
_KINDS = [DataKind.WEIGHT_DIFF]


class Compress(DXOFilter):
    """Client side, a filter of task results: a weight difference becomes one array of compressed bytes.

    What the difference loses is kept in the filter and added to the client's next one. FLARE does not tell a filter
    whether a result arrived, so all are taken to have arrived; a client that restarts has no residual.
    Only `WEIGHT_DIFF` is touched: other data would not tolerate a coarse step.

    Parameters
    ----------
    method, bound, options
        As for `nearzip.federated.Client`: by default "nearzip" with "rms:2", one coarse step for the whole difference.
        Plain strings and numbers, as FLARE's configuration files need them.
    residual : str or None
        "exact", "nearzip", "qd-compressor", "lc-checkpoint", or None: dropped.
    """

    def __init__(
        self,
        method: str = "nearzip",
        bound: str | None = None,
        options: Mapping[str, Any] | None = None,
        residual: str | None = "nearzip",
    ) -> None:
        super().__init__(_KINDS, _KINDS)
        self._method, self._options = method, dict(options or {})
        self._bound: Bound | None = parse_bound(bound) if bound else Rms(2.0) if method == "nearzip" else None
        if method == "nearzip" and not isinstance(self._bound, (Rms, Absolute)):
            raise UsageError(f"a federated update takes a bound such as rms:2 or abs:1e-3, not {self._bound}")
        self._residual = Residual(residual)

    def process_dxo(self, dxo: Any, shareable: Any, fl_ctx: Any) -> Any:
        """A new DXO; the one given is shared with others and stays as it is."""
        if dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM):
            raise UsageError(f"the difference is compressed already: {dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)}")
        given = {name: np.asarray(value) for name, value in dxo.data.items()}
        floats = [name for name, value in given.items() if value.dtype.kind == "f"]
        wanted = {name: given[name].astype(np.float32) for name in floats}
        for name, left in self._residual.load(floats).items():
            wanted[name] = wanted[name] + left
        if not all(np.isfinite(value).all() for value in wanted.values()):
            raise UsageError("the weight difference is not finite; the training diverged")
        archive = compress_quietly({**given, **wanted}, None, self._method, self._bounds(wanted), options=self._options)
        self._residual.store({name: wanted[name] - archive.restored[name] for name in floats})
        self._residual.check()
        packed = DXO(dxo.data_kind, {_NAME: np.frombuffer(archive.to_bytes(), np.uint8)}, _meta(dxo))
        packed.set_meta_prop(MetaKey.PROCESSED_ALGORITHM, _NAME)
        return packed

    def _bounds(self, wanted: Mapping[str, Array]) -> Any:
        """One step for the whole difference; a finer one for small tensors."""
        if self._method != "nearzip":
            return self._bound
        large = [value for value in wanted.values() if value.size >= _SMALL] or list(wanted.values())
        if isinstance(self._bound, Absolute):
            half = self._bound.value
        else:
            total = sum((Statistics.of(value) for value in large), Statistics())
            half = self._bound.value * total.rms  # type: ignore[union-attr]
        half = half if 0 < half < math.inf else 1e-30
        small = {name: Absolute(half / _FINER) for name, value in wanted.items() if value.size < _SMALL}
        return {"*": Absolute(half), **{name.replace("[", "[[]"): bound for name, bound in small.items()}}


class Decompress(DXOFilter):
    """Server side, a filter of task results: the inverse of `Compress`.

    A result that is damaged, too large or not finite raises a named error, which FLARE reports as that client's.

    Parameters
    ----------
    max_bytes : int
        The most that a difference may take uncompressed.
    """

    def __init__(self, max_bytes: int = 1 << 32) -> None:
        super().__init__(_KINDS, _KINDS)
        self._limits = Limits(output_bytes=max_bytes)

    def process_dxo(self, dxo: Any, shareable: Any, fl_ctx: Any) -> Any:
        """A new DXO of plain arrays; None for what `Compress` did not make."""
        if dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) != _NAME:
            return None
        data = dxo.data.get(_NAME)
        if list(dxo.data) != [_NAME] or not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
            raise CorruptError("the weight difference is not one array of bytes, as nearzip sends it")
        arrays = decompress(data.tobytes(), limits=self._limits)
        for name, value in arrays.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise BoundError(f"tensor {name!r} of the weight difference holds NaN or infinities")
        plain = DXO(dxo.data_kind, dict(arrays), _meta(dxo))
        plain.remove_meta_props([MetaKey.PROCESSED_ALGORITHM])
        return plain


def _meta(dxo: Any) -> dict[str, Any]:
    """Of a new DXO; FLARE itself carries the history of filters over."""
    return {name: value for name, value in dxo.meta.items() if name != MetaKey.FILTER_HISTORY}
