"""Typed, reversible steps from a tensor's values to bytes. Array maths only: no files, no PyTorch, no store."""

from nearzip.stages.base import BYTES, FLOATS, SYMBOLS, Coded, Context, Grid, Kind, SparseValues, Stage
from nearzip.stages.bloomier import Bloomier
from nearzip.stages.buckets import ExponentBuckets
from nearzip.stages.codebook import Codebook
from nearzip.stages.e8 import E8Step
from nearzip.stages.entropy import Rans
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.foreign import Blosc, Sz3, Zfp
from nearzip.stages.huffman import Huffman
from nearzip.stages.pipeline import Chain, Pipeline
from nearzip.stages.predict import ContextDelta, OrderedBits, OrderedDelta, SubtractBase
from nearzip.stages.prune import Prune
from nearzip.stages.quantize import LogStep, UniformStep
from nearzip.stages.ranges import RangeQuantize
from nearzip.stages.registry import pipeline_from_json, stage_types
from nearzip.stages.runs import PackIntegers, RawBytes, RunLengths, SymbolBytes
from nearzip.stages.smallest import SmallestOf
from nearzip.stages.sparse import DecodeTimes, Sparse
from nearzip.stages.split import Split, Stream
from nearzip.stages.stepped import StepThenBits

__all__ = [
    "BYTES",
    "FLOATS",
    "SYMBOLS",
    "Bloomier",
    "Blosc",
    "Chain",
    "Codebook",
    "Coded",
    "Context",
    "ContextDelta",
    "DecodeTimes",
    "E8Step",
    "ExponentBuckets",
    "Grid",
    "Gzip",
    "Huffman",
    "Kind",
    "LogStep",
    "Lzma",
    "OrderedBits",
    "OrderedDelta",
    "PackIntegers",
    "Pipeline",
    "Prune",
    "RangeQuantize",
    "Rans",
    "RawBytes",
    "RunLengths",
    "SmallestOf",
    "Sparse",
    "SparseValues",
    "Split",
    "Stage",
    "StepThenBits",
    "Stream",
    "SubtractBase",
    "SymbolBytes",
    "Sz3",
    "UniformStep",
    "Zfp",
    "Zstd",
    "pipeline_from_json",
    "stage_types",
]
