"""Stages by name: ours and those of plug-ins (entry points in the group `nearzip.stages`)."""

from __future__ import annotations

import functools
from typing import Any

from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.plugins import Plugins, subclass_check
from nearzip.stages.base import Stage
from nearzip.stages.bits import AdaptivePrefix, FixedBits, KeyHuffman
from nearzip.stages.bloom import BloomIndex
from nearzip.stages.bloomier import Bloomier
from nearzip.stages.buckets import ExponentBuckets
from nearzip.stages.codebook import Codebook
from nearzip.stages.curves import FitCurve
from nearzip.stages.e8 import E8Step
from nearzip.stages.entropy import Rans
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.foreign import Blosc, Sz3, Zfp
from nearzip.stages.golomb import Golomb
from nearzip.stages.huffman import Huffman
from nearzip.stages.min_max import MinMaxSketch
from nearzip.stages.pipeline import Chain, Pipeline
from nearzip.stages.predict import ContextDelta, OrderedBits, OrderedDelta, SubtractBase
from nearzip.stages.prune import Prune
from nearzip.stages.qsgd import StochasticLevels
from nearzip.stages.quantiles import QuantileBuckets
from nearzip.stages.quantize import LogStep, UniformStep
from nearzip.stages.ranges import RangeQuantize
from nearzip.stages.runs import PackIntegers, RawBytes, RunLengths, SymbolBytes
from nearzip.stages.smallest import SmallestOf
from nearzip.stages.sparse import Sparse
from nearzip.stages.stepped import StepThenBits
from nearzip.stages.top_mean import TopMean

__all__ = ["BUILT_IN", "PLUGINS", "chain_from_json", "pipeline_from_json", "stage_type", "stage_types"]

BUILT_IN: tuple[type[Stage], ...] = (
    SubtractBase,
    OrderedDelta,
    ContextDelta,
    OrderedBits,
    UniformStep,
    LogStep,
    E8Step,
    RangeQuantize,
    ExponentBuckets,
    TopMean,
    StochasticLevels,
    QuantileBuckets,
    FitCurve,
    Prune,
    Codebook,
    Bloomier,
    Sparse,
    BloomIndex,
    MinMaxSketch,
    SmallestOf,
    StepThenBits,
    RawBytes,
    PackIntegers,
    RunLengths,
    SymbolBytes,
    Rans,
    Huffman,
    Golomb,
    FixedBits,
    AdaptivePrefix,
    KeyHuffman,
    Gzip,
    Lzma,
    Zstd,
    Sz3,
    Zfp,
    Blosc,
)

_BUILT_IN_BY_ID: dict[str, type[Stage]] = {stage.id: stage for stage in BUILT_IN}
#: A plug-in cannot replace a built-in stage.
PLUGINS: Plugins[type[Stage]] = Plugins("nearzip.stages", "stage", subclass_check(Stage, "id"))  # type: ignore[type-abstract]

#: Of one chain, and chains within chains.
_MAX_STAGES = 16
_MAX_DEPTH = 3


def stage_types() -> dict[str, type[Stage]]:
    """All stages by id, without plug-ins that cannot be loaded."""
    return PLUGINS.all()[0] | _BUILT_IN_BY_ID


def stage_type(name: str) -> type[Stage]:
    """The stage of that id. Raises NewerFormatError, or PluginError for a plug-in that cannot be loaded."""
    found = _BUILT_IN_BY_ID.get(name) or PLUGINS.load(name)
    if found is None:
        raise NewerFormatError(
            f"the archive uses stage {name[:80]!r}, which this release does not know; "
            "upgrade nearzip or install the plug-in that provides it"
        )
    return found


def _stages_from_json(document: Any, depth: int) -> tuple[Stage, ...]:
    if type(document) is not list or not 0 < len(document) <= _MAX_STAGES:
        raise CorruptError("index: a pipeline is not a short list of stages")
    if depth > _MAX_DEPTH:
        raise CorruptError(f"index: pipelines are nested deeper than {_MAX_DEPTH}")
    return tuple(_stage_from_json(stage, depth) for stage in document)


def _stage_from_json(document: Any, depth: int) -> Stage:
    if type(document) is not dict or type(document.get("id")) is not str:
        raise CorruptError("index: a stage is not an object with an id")
    kind = stage_type(document["id"])
    if len(document) == 1:
        return _without_parameters(kind)
    parameters = {name: value for name, value in document.items() if name != "id"}
    return kind.from_json(parameters, lambda value: Chain(_stages_from_json(value, depth + 1)))


# Most stages have none, and each is read again for every pipeline of every archive.
@functools.cache
def _without_parameters(kind: type[Stage]) -> Stage:
    return kind.from_json({})


def pipeline_from_json(document: Any) -> Pipeline:
    """A pipeline from a file's index (untrusted). Raises CorruptError, NewerFormatError or PluginError."""
    try:
        return Pipeline(_stages_from_json(document, 0))
    except UsageError as error:
        raise CorruptError(f"index: {error}") from None


def chain_from_json(document: Any) -> Chain:
    """A chain of a stage from its JSON (untrusted). Raises the same errors."""
    try:
        return Chain(_stages_from_json(document, 1))
    except UsageError as error:
        raise CorruptError(f"index: {error}") from None
