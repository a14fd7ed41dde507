"""Stages by name: ours and those of plug-ins (entry points in the group `nearzip.stages`)."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Any

from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.stages.base import Chain, Pipeline, Stage
from nearzip.stages.bloomier import Bloomier
from nearzip.stages.buckets import ExponentBuckets
from nearzip.stages.codebook import Codebook
from nearzip.stages.e8 import E8Step
from nearzip.stages.entropy import Rans
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.foreign import Blosc, Sz3, Zfp
from nearzip.stages.golomb import Golomb
from nearzip.stages.huffman import Huffman
from nearzip.stages.predict import ContextDelta, OrderedBits, OrderedDelta, SubtractBase
from nearzip.stages.prune import Prune
from nearzip.stages.qsgd import StochasticLevels
from nearzip.stages.quantize import LogStep, UniformStep
from nearzip.stages.ranges import RangeQuantize
from nearzip.stages.runs import PackIntegers, RawBytes, RunLengths, SymbolBytes
from nearzip.stages.smallest import SmallestOf
from nearzip.stages.sparse import Sparse
from nearzip.stages.stepped import StepThenBits
from nearzip.stages.top_mean import TopMean

__all__ = ["BUILT_IN", "pipeline_from_json", "read_chains", "stage_types"]

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
    Prune,
    Codebook,
    Bloomier,
    Sparse,
    SmallestOf,
    StepThenBits,
    RawBytes,
    PackIntegers,
    RunLengths,
    SymbolBytes,
    Rans,
    Huffman,
    Golomb,
    Gzip,
    Lzma,
    Zstd,
    Sz3,
    Zfp,
    Blosc,
)

#: Of one chain, and chains within chains.
_MOST_STAGES = 16
_MOST_DEPTH = 3


@functools.cache
def stage_types() -> dict[str, type[Stage]]:
    """All stages by id. A plug-in cannot replace a built-in one."""
    types = {point.name: point.load() for point in entry_points(group="nearzip.stages")}
    return types | {stage.id: stage for stage in BUILT_IN}


def _stage_from_json(document: Any, depth: int) -> Stage:
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise CorruptError("index: a stage is not an object with an id")
    parameters = {name: value for name, value in document.items() if name != "id"}
    kind = _stage_type(document["id"])
    try:
        return kind.from_json(read_chains(kind, parameters, depth))
    except UsageError as error:
        raise CorruptError(f"index: {error}") from None


def _stage_type(name: str) -> type[Stage]:
    built_in = {stage.id: stage for stage in BUILT_IN}
    found = built_in.get(name) or stage_types().get(name)
    if found is None:
        raise NewerFormatError(
            f"the archive uses stage {name[:80]!r}, which this release does not know; "
            "upgrade nearzip or install the plug-in that provides it"
        )
    return found


def read_chains(kind: type[Stage], parameters: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Parameters of a stage with its chains made of their JSON (untrusted). Raises CorruptError, NewerFormatError."""
    chains = {name for name, hint in kind.hints().items() if hint is Chain}
    return {
        name: Chain(_stages_from_json(value, depth + 1)) if name in chains and isinstance(value, list) else value
        for name, value in parameters.items()
    }


def _stages_from_json(document: Any, depth: int) -> tuple[Stage, ...]:
    if not isinstance(document, list) or not 0 < len(document) <= _MOST_STAGES:
        raise CorruptError("index: a pipeline is not a short list of stages")
    if depth > _MOST_DEPTH:
        raise CorruptError(f"index: pipelines are nested deeper than {_MOST_DEPTH}")
    return tuple(_stage_from_json(stage, depth) for stage in document)


def pipeline_from_json(document: Any) -> Pipeline:
    """A pipeline from a file's index (untrusted). Raises CorruptError or NewerFormatError."""
    try:
        return Pipeline(_stages_from_json(document, 0))
    except UsageError as error:
        raise CorruptError(f"index: {error}") from None
