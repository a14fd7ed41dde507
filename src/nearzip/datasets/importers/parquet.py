"""Parquet files as Hugging Face's datasets write them: a column of {"bytes", "path"}, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearzip.datasets.images import read_image
from nearzip.datasets.samples import PartSamples, Samples
from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.tensors import Array

_LABELS = ("label", "labels", "fine_label")


def recognizes(path: Path) -> bool:
    """Whether the file name has a known ending."""
    return path.is_file() and path.suffix.lower() == ".parquet"


@dataclass(frozen=True)
class ParquetSamples(Samples):
    """Images whose encoded bytes are in memory."""

    path: Path
    data: tuple[bytes, ...]
    mode: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    first: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Array:
        return read_image(self.data[i], f"{self.path}: row {self.first + i}", self.mode)

    def part(self, begin: int, end: int) -> Samples:
        cut = ParquetSamples(self.path, self.data[begin:end], self.mode, first=self.first + begin)
        return PartSamples(cut, 0, end - begin)


def read(path: Path, *, mode: str | None, images: str | None, labels: str | None, **_: Any) -> ParquetSamples:
    """Raises UsageError if no column holds images, CorruptError for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "datasets", f"{path}: reading Parquet") from None
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: cannot be read: {str(error)[:200]}") from None
    name = images or next((n for n in table.column_names if _holds_bytes(pyarrow, table.schema.field(n).type)), None)
    if name is None or name not in table.column_names:
        raise UsageError(
            f"{path}: has no column of image bytes; it has {', '.join(table.column_names)}; give images=NAME"
        )
    rows = table.column(name).to_pylist()
    data: list[Any] = [row.get("bytes") if isinstance(row, dict) else row for row in rows]
    missing = next((i for i, each in enumerate(data) if not isinstance(each, bytes)), None)
    if missing is not None:
        raise UsageError(f"{path}: row {missing} of {name!r} holds no bytes; the images may be files elsewhere")
    label = labels or next((n for n in _LABELS if n in table.column_names), None)
    if label is not None and label not in table.column_names:
        raise UsageError(f"{path}: has no column {label!r}; it has {', '.join(table.column_names)}")
    columns = {} if label is None else {"label": table.column(label).to_pylist()}
    return ParquetSamples(path, tuple(data), mode, columns)


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
