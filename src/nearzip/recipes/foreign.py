"""SZ3, ZFP and blosc2, on values or on the difference to the base. docs/methods/foreign.md."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from nearzip.bounds import EXACT, Absolute, Bound, Lossless, Relative, Rms, Update
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.recipes.rounding import half_spacing, headroom
from nearzip.stages import Blosc, OrderedDelta, Pipeline, RawBytes, Stage, SubtractBase, SymbolBytes, Sz3, Zfp
from nearzip.tensors import DTYPES

__all__ = ["BloscRecipe", "Sz3Recipe", "ZfpRecipe"]


@dataclass(frozen=True)
class _FloatRecipe(Recipe):
    """One codec that keeps an absolute error."""

    group_bytes = 16 << 20

    @abstractmethod
    def _codec(self, error: float) -> Stage:
        """The stage that keeps it."""

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is None:
            return Absolute(1e-3)
        if isinstance(bound, (Absolute, Relative, Rms, Update)):
            return bound
        raise UsageError(f"{self.name} cannot promise {bound}; it keeps abs:E, rel:E, rms:E and upd:E")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        tolerance = bound.tolerance(tensor.own)
        if tolerance.kind == "exact":
            return TensorPlan(exact_pipeline(tensor.with_base), tolerance)
        error = headroom(tolerance.value, half_spacing(tensor.dtype, tensor.own.largest))
        first = (SubtractBase(),) if tensor.with_base else ()
        return TensorPlan(Pipeline((*first, self._codec(error))), tolerance)


@dataclass(frozen=True)
class Sz3Recipe(_FloatRecipe):
    """SZ3: prediction, error-bounded quantization, Huffman, Zstandard (extra sz).

    `algorithm`: "smaller" tries with and without prediction.
    """

    name = "sz3"
    needs = ("pysz",)

    algorithm: Literal["smaller", "INTERP_LORENZO", "NOPRED"] = "smaller"

    def _codec(self, error: float) -> Stage:
        return Sz3(error, self.algorithm)


@dataclass(frozen=True)
class ZfpRecipe(_FloatRecipe):
    """ZFP: block transform and bit planes with a fixed accuracy (extra zfp)."""

    name = "zfp"
    needs = ("zfpy",)

    def _codec(self, error: float) -> Stage:
        return Zfp(error)


@dataclass(frozen=True)
class BloscRecipe(Recipe):
    """blosc2: bytes of values, or of exact differences to the base, shuffled, Zstandard; lossless (extra blosc)."""

    name = "blosc"
    needs = ("blosc2",)
    fallback = "never"
    group_bytes = 16 << 20

    filter: Literal["SHUFFLE", "BITSHUFFLE"] = "SHUFFLE"
    codec: Literal["ZSTD", "LZ4", "ZLIB"] = "ZSTD"
    level: int = 9

    def __post_init__(self) -> None:
        Blosc(4, self.filter, self.codec, self.level)

    def resolve_bound(self, bound: Bound | None) -> Bound:
        # Keeping every bit keeps any bound.
        return Lossless()

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return TensorPlan(self._pipeline(tensor.dtype.itemsize, tensor.with_base), EXACT)

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        return Pipeline((RawBytes(), pipeline.stages[-1]))

    def exact_pipeline(self, with_base: bool) -> Pipeline:
        return self._pipeline(DTYPES["int64"].itemsize, with_base)

    def _pipeline(self, typesize: int, with_base: bool) -> Pipeline:
        first = (OrderedDelta(), SymbolBytes()) if with_base else (RawBytes(),)
        return Pipeline((*first, Blosc(typesize, self.filter, self.codec, self.level)))
