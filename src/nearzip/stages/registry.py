"""Stages by name: ours and those of plug-ins (entry points in the group `nearzip.stages`)."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Any

from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.stages.base import Pipeline, Stage
from nearzip.stages.entropy import Rans
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.predict import OrderedBits, OrderedDelta, SubtractBase
from nearzip.stages.quantize import LogStep, UniformStep
from nearzip.stages.runs import PackIntegers, RawBytes, RunLengths

__all__ = ["BUILT_IN", "pipeline_from_json", "stage_types"]

BUILT_IN: tuple[type[Stage], ...] = (
    SubtractBase,
    OrderedDelta,
    OrderedBits,
    UniformStep,
    LogStep,
    RawBytes,
    PackIntegers,
    RunLengths,
    Rans,
    Gzip,
    Lzma,
    Zstd,
)

_MOST_STAGES = 16


@functools.cache
def stage_types() -> dict[str, type[Stage]]:
    """All stages by id. A plug-in cannot replace a built-in one."""
    types = {point.name: point.load() for point in entry_points(group="nearzip.stages")}
    return types | {stage.id: stage for stage in BUILT_IN}


def _stage_from_json(document: Any) -> Stage:
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise CorruptError("index: a stage is not an object with an id")
    parameters = {name: value for name, value in document.items() if name != "id"}
    try:
        return _stage_type(document["id"]).from_json(parameters)
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


def pipeline_from_json(document: Any) -> Pipeline:
    """A pipeline from a file's index (untrusted). Raises CorruptError or NewerFormatError."""
    if not isinstance(document, list) or not 0 < len(document) <= _MOST_STAGES:
        raise CorruptError("index: a pipeline is not a short list of stages")
    stages = tuple(_stage_from_json(stage) for stage in document)
    try:
        return Pipeline(stages)
    except UsageError as error:
        raise CorruptError(f"index: {error}") from None
