"""Stages that make several streams, each with stages of its own: round trip, JSON, hostile input."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

import nearzip as nz
from nearzip.coding import Codings
from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.recipes import TensorPlan, Unpromised
from nearzip.stages import (
    BYTES,
    FLOATS,
    SYMBOLS,
    Chain,
    Context,
    Gzip,
    Lzma,
    PackIntegers,
    Pipeline,
    Rans,
    RawBytes,
    Split,
    Stream,
    SubtractBase,
    UniformStep,
    Zstd,
    pipeline_from_json,
    registry,
)
from nearzip.stages.base import put_varint
from nearzip.testing.contract import check_stage


@dataclass(frozen=True)
class KeptAndGaps(Split):
    """Values that are not zero, and the distances between them: a small sparse form."""

    id = "kept-and-gaps"
    takes = FLOATS
    streams = {"values": Stream(FLOATS), "gaps": Stream(SYMBOLS, np.dtype(np.int32))}  # noqa: RUF012

    values: Chain = Chain((RawBytes(), Zstd()))
    gaps: Chain = Chain((Rans(),))

    def split(self, value, context):
        places = np.flatnonzero(value.astype(bool) | (value.view(f"u{value.itemsize}") != 0))
        return (value[places], np.diff(places, prepend=-1).astype(np.int32)), b""

    def join(self, streams, side, context):
        values, gaps = streams
        if side or values.size != gaps.size or (gaps.size and int(gaps.min()) < 1):
            raise CorruptError("sparse form makes no sense")
        places = np.cumsum(gaps.astype(np.int64)) - 1
        if places.size and int(places[-1]) >= context.n:
            raise CorruptError("sparse form is longer than its block")
        out = np.zeros(context.n, context.dtype)
        out[places] = values
        return out

    def encode(self, value, context=None):
        if value.dtype.kind != "f":
            raise UsageError("floats only")
        return super().encode(value, context)


@dataclass(frozen=True)
class Halves(Split):
    """Bytes in two halves; nests without end."""

    id = "halves"
    takes = BYTES
    streams = {"left": Stream(BYTES, np.dtype(np.uint8)), "right": Stream(BYTES, np.dtype(np.uint8))}  # noqa: RUF012

    left: Chain = Chain((Gzip(),))
    right: Chain = Chain((Lzma(),))

    def split(self, value, context):
        data = bytes(value)
        return (data[: len(data) // 2], data[len(data) // 2 :]), b""

    def join(self, streams, side, context):
        return bytes(streams[0]) + bytes(streams[1])

    def most_values(self, context):
        return 8 * context.n + 1024


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for stage in (KeptAndGaps, Halves):
        monkeypatch.setitem(registry._BUILT_IN_BY_ID, stage.id, stage)


SPARSE = np.where(np.arange(5000) % 17 == 3, np.linspace(-1, 1, 5000), 0).astype(np.float32)
DEEP = Pipeline(
    (KeptAndGaps(Chain((RawBytes(), Halves(left=Chain((Halves(), Zstd()))))), Chain((PackIntegers(), Lzma()))),)
)


def test_half_of_the_contract_holds_for_a_split_stage():
    check_stage(Halves())


@pytest.mark.parametrize("pipeline", [Pipeline((KeptAndGaps(),)), Pipeline((KeptAndGaps(), Gzip())), DEEP], ids=repr)
def test_a_nested_pipeline_is_its_json_and_comes_back(pipeline):
    again = pipeline_from_json(json.loads(json.dumps(pipeline.to_json())))
    assert again == pipeline
    assert hash(again) == hash(pipeline)
    context = Context.of(SPARSE)
    assert again.decode(pipeline.encode(SPARSE, context), context).tobytes() == SPARSE.tobytes()
    for n in (0, 1):
        x = SPARSE[:n]
        assert again.decode(pipeline.encode(x, Context.of(x)), Context.of(x)).tobytes() == x.tobytes()


def test_the_stages_of_each_stream_stand_in_the_json_and_in_the_label():
    assert DEEP.to_json()[0]["gaps"] == [{"id": "pack-integers"}, {"id": "lzma"}]
    assert DEEP.label.startswith("kept-and-gaps(values: raw-bytes halves(left: halves(left: gzip; right: lzma) zstd;")
    assert Pipeline((KeptAndGaps(),)).to_json() == [{"id": "kept-and-gaps"}]


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeptAndGaps(values=Chain((Rans(),))),
        lambda: KeptAndGaps(gaps=Chain((RawBytes(),))),
        lambda: KeptAndGaps(values=Chain((SubtractBase(), UniformStep(1.0), Rans()))),
        lambda: Chain(()),
        lambda: Chain((UniformStep(1.0),)),
        lambda: Chain((UniformStep(1.0), Zstd())),
        lambda: Pipeline((Rans(),)),
    ],
)
def test_chains_whose_kinds_do_not_match_are_refused(make):
    with pytest.raises(UsageError):
        make()


def nested(depth):
    chain = [{"id": "gzip"}]
    for _ in range(depth):
        chain = [{"id": "halves", "left": chain}]
    return [{"id": "raw-bytes"}, *chain]


@pytest.mark.parametrize(
    "document",
    [
        [{"id": "kept-and-gaps", "gaps": []}],
        [{"id": "kept-and-gaps", "gaps": {}}],
        [{"id": "kept-and-gaps", "gaps": "rans"}],
        [{"id": "kept-and-gaps", "gaps": [{"id": "raw-bytes"}]}],
        [{"id": "kept-and-gaps", "gaps": [{"id": "gzip"}]}],
        [{"id": "kept-and-gaps", "gaps": [{"id": "rans", "split": 3}]}],
        [{"id": "kept-and-gaps", "gaps": [{"id": "rans"}] + [{"id": "gzip"}] * 16}],
        [{"id": "kept-and-gaps", "others": [{"id": "rans"}]}],
        [{"id": "kept-and-gaps", "values": [{"id": "subtract-base"}, {"id": "raw-bytes"}]}],
        nested(4),
        nested(300),
    ],
    ids=lambda d: str(d)[:60],
)
def test_nested_pipelines_that_make_no_sense_are_corrupt(document):
    with pytest.raises(CorruptError):
        pipeline_from_json(document)


def test_nesting_has_a_limit():
    assert pipeline_from_json(nested(3))
    with pytest.raises(CorruptError, match="nested deeper than 3"):
        pipeline_from_json(nested(4))


def test_an_unknown_nested_stage_asks_for_a_newer_release():
    with pytest.raises(NewerFormatError, match="'quantum'"):
        pipeline_from_json([{"id": "kept-and-gaps", "gaps": [{"id": "quantum"}]}])


def test_streams_that_lie_are_corrupt():
    stage = KeptAndGaps(Chain((RawBytes(),)), Chain((PackIntegers(),)))
    context = Context.of(SPARSE)
    coded = stage.encode(SPARSE, context)
    two = b"\1\4" + bytes(4)
    for data in (
        b"", b"\0", put_varint(1 << 40) + b"\0\0\0", put_varint(context.n + 1025) + b"\0", b"\1\5" + bytes(4),
        two, two + b"\1\3\1\1\0", two + b"\1\3\1\1\1\0", two + b"\0\0", two + b"\2\4\1\1\1\1",
        coded.data[:-1], coded.data + b"\0",
    ):  # fmt: skip
        with pytest.raises(CorruptError):
            stage.decode(replace(coded, value=data), context)
    for at in range(0, len(coded.data), 7):
        harmed = bytearray(coded.data)
        harmed[at] ^= 0x55
        with contextlib.suppress(CorruptError):
            assert stage.decode(replace(coded, value=bytes(harmed)), context).shape == SPARSE.shape


@dataclass(frozen=True)
class _Sparse(Unpromised):
    """Keeps what is not zero."""

    name = "sparse"
    whole_tensors = True
    fallback = "never"

    def plan(self, tensor, bound):
        return TensorPlan(Pipeline((KeptAndGaps(),)), bound.tolerance(tensor.own))


def test_an_archive_with_nested_pipelines_says_how_it_is_coded(tmp_path):
    import io

    from nearzip.tensors import Checkpoint
    from nearzip.writing import write_archive

    stream = io.BytesIO()
    write_archive(Checkpoint.of({"w": SPARSE}), None, Codings.of(_Sparse()), stream)
    with nz.open(stream.getvalue()) as reader:
        assert reader["w"].tobytes() == SPARSE.tobytes()
        assert reader.tensor_reports()[0].stages == ("kept-and-gaps(values: raw-bytes zstd; gaps: rans)",)
