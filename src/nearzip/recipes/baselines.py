"""General-purpose compressors on a tensor's raw bytes, as a yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nearzip.bounds import EXACT, Bound, Lossless
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.stages import Gzip, Lzma, Pipeline, RawBytes, Stage, Zstd

__all__ = ["GzipRecipe", "LzmaRecipe", "ZstdRecipe"]


@dataclass(frozen=True)
class _RawRecipe(Recipe):
    """Raw bytes through one compressor."""

    uses_base = False
    fallback = "never"
    group_bytes = 16 << 20

    compressor: ClassVar[type[Stage]]

    def _pipeline(self) -> Pipeline:
        return Pipeline((RawBytes(), self.compressor(**self.options())))

    def resolve_bound(self, bound: Bound | None) -> Bound:
        # Keeping every bit keeps any bound.
        return Lossless()

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return TensorPlan(self._pipeline(), EXACT)

    def exact_pipeline(self, with_base: bool) -> Pipeline:
        return self._pipeline()


@dataclass(frozen=True)
class GzipRecipe(_RawRecipe):
    """Baseline: DEFLATE on raw bytes, lossless."""

    name = "gzip"
    compressor = Gzip

    level: int = 9


@dataclass(frozen=True)
class ZstdRecipe(_RawRecipe):
    """Baseline: Zstandard on raw bytes, lossless."""

    name = "zstd"
    compressor = Zstd

    level: int = 19


@dataclass(frozen=True)
class LzmaRecipe(_RawRecipe):
    """Baseline: LZMA2 on raw bytes, lossless."""

    name = "lzma"
    compressor = Lzma

    preset: int = 6
