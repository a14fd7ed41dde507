"""Data sets in as few bytes as the accuracy allows: written, read, tuned, selected; coefficients to learn from.

Section III of Joseph et al., "Correctness-preserving Compression of Datasets and Neural Network Models" (2020), and
past it.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from nearzip.datasets.choosing import for_network
    from nearzip.datasets.codecs.base import SampleCodec
    from nearzip.datasets.codecs.registry import CODECS, codec_of
    from nearzip.datasets.evaluating import ImageEvaluator, image_evaluator
    from nearzip.datasets.exporting import export
    from nearzip.datasets.format import Shard
    from nearzip.datasets.importing import load
    from nearzip.datasets.loading import Dataset
    from nearzip.datasets.plans import Plan
    from nearzip.datasets.reading import FileReader, Reader
    from nearzip.datasets.samples import Samples
    from nearzip.datasets.selecting import select
    from nearzip.datasets.sensitivity import calibrate
    from nearzip.datasets.shards import ShardedReader
    from nearzip.datasets.shards import open_dataset as open
    from nearzip.datasets.transforms import coefficients, mirrored, shifted
    from nearzip.datasets.tuning import tune
    from nearzip.datasets.writing import Written, write

__all__ = [
    "CODECS",
    "Dataset",
    "FileReader",
    "ImageEvaluator",
    "Plan",
    "Reader",
    "SampleCodec",
    "Samples",
    "Shard",
    "ShardedReader",
    "Written",
    "calibrate",
    "codec_of",
    "coefficients",
    "export",
    "for_network",
    "image_evaluator",
    "load",
    "mirrored",
    "open",
    "select",
    "shifted",
    "tune",
    "write",
]

_HOMES = {
    "choosing": ("for_network",),
    "codecs.base": ("SampleCodec",),
    "codecs.registry": ("CODECS", "codec_of"),
    "transforms": ("coefficients", "mirrored", "shifted"),
    "evaluating": ("ImageEvaluator", "image_evaluator"),
    "exporting": ("export",),
    "format": ("Shard",),
    "importing": ("load",),
    "loading": ("Dataset",),
    "plans": ("Plan",),
    "reading": ("FileReader", "Reader"),
    "samples": ("Samples",),
    "selecting": ("select",),
    "sensitivity": ("calibrate",),
    "shards": ("ShardedReader", "open"),
    "tuning": ("tune",),
    "writing": ("Written", "write"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_OTHER_NAMES = {"open": "open_dataset"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME_OF:
        raise AttributeError(f"module 'nearzip.datasets' has no attribute {name!r}")
    module = importlib.import_module(f"nearzip.datasets.{_HOME_OF[name]}")
    found = getattr(module, _OTHER_NAMES.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
