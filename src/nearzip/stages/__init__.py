"""Typed, reversible steps from a tensor's values to bytes. Array maths only: no files, no PyTorch, no store."""

from nearzip.stages.base import BYTES, FLOATS, SYMBOLS, Chain, Coded, Context, Kind, Pipeline, Stage
from nearzip.stages.entropy import Rans
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.predict import ContextDelta, OrderedBits, OrderedDelta, SubtractBase
from nearzip.stages.quantize import LogStep, UniformStep
from nearzip.stages.registry import pipeline_from_json, stage_types
from nearzip.stages.runs import PackIntegers, RawBytes, RunLengths
from nearzip.stages.split import Split, Stream

__all__ = [
    "BYTES",
    "FLOATS",
    "SYMBOLS",
    "Chain",
    "Coded",
    "Context",
    "ContextDelta",
    "Gzip",
    "Kind",
    "LogStep",
    "Lzma",
    "OrderedBits",
    "OrderedDelta",
    "PackIntegers",
    "Pipeline",
    "Rans",
    "RawBytes",
    "RunLengths",
    "Split",
    "Stage",
    "Stream",
    "SubtractBase",
    "UniformStep",
    "Zstd",
    "pipeline_from_json",
    "stage_types",
]
