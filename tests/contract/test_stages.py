"""Every registered stage, ours and plug-ins', through the whole contract."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.stages import (
    Coded,
    Context,
    ContextDelta,
    LogStep,
    Lzma,
    OrderedBits,
    OrderedDelta,
    PackIntegers,
    Pipeline,
    Rans,
    RawBytes,
    RunLengths,
    SparseValues,
    StepThenBits,
    SubtractBase,
    UniformStep,
    pipeline_from_json,
    stage_types,
)
from nearzip.tensors import DTYPES, FLOATS
from nearzip.testing.contract import check_registered, check_stage, examples_of, trouble

STAGES = [stage for name in stage_types() for stage in examples_of(check_registered(name, stage_types()))]


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_the_contract_is_kept(stage):
    for package in stage.needs:
        pytest.importorskip(package)
    check_stage(stage)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline((RawBytes(),)),
        Pipeline((OrderedBits(), Rans("planes"))),
        Pipeline((OrderedBits(), Rans())),
        Pipeline((ContextDelta(),)),
        Pipeline((OrderedDelta(), Rans())),
        Pipeline((OrderedDelta(), Rans("planes"))),
    ],
    ids=lambda p: " ".join(stage.id for stage in p.stages),
)
def test_exact_pipelines_keep_every_bit(pipeline, dtype):
    for case, values in trouble(dtype).items():
        values = np.ascontiguousarray(values)
        base = np.ascontiguousarray(values[::-1]) if pipeline.needs_base else None
        context = Context.of(values, base)
        decoded = pipeline.decode(pipeline.encode(values, context), context)
        assert decoded.dtype == values.dtype
        assert decoded.tobytes() == values.tobytes(), case


PIPELINES = [
    Pipeline((UniformStep(0.01), Rans())),
    Pipeline((SubtractBase(), UniformStep(0.01), Rans())),
    Pipeline((SubtractBase(), UniformStep(0.01), RunLengths(), Lzma())),
    Pipeline((LogStep(0.01, delta=True), PackIntegers(), Lzma())),
]


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: " ".join(stage.id for stage in p.stages))
def test_a_pipeline_is_its_json(pipeline):
    assert pipeline_from_json(json.loads(json.dumps(pipeline.to_json()))) == pipeline


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: " ".join(stage.id for stage in p.stages))
def test_stages_that_are_joined_give_the_same_bytes_as_one_by_one(pipeline):
    rng = np.random.default_rng(0)
    x, base = rng.normal(0, 0.1, (2, 3000)).astype(np.float32)
    x[5] = np.nan
    context = Context.of(x, base)
    joined = pipeline.encode(x, context)
    value, sides = x, []
    for stage in pipeline.stages:
        coded = stage.encode(value, context)
        value = coded.value
        sides.append(bytes([len(coded.side)]) + coded.side)
    assert joined == b"".join([*sides, value])
    apart = value
    for stage, side in zip(reversed(pipeline.stages), reversed(sides), strict=True):
        apart = stage.decode(type(coded)(apart, side[1:]), context)
    with np.errstate(invalid="ignore"):
        assert pipeline.decode(joined, context).tobytes() == apart.astype(np.float32).tobytes()


def test_kinds_must_match():
    for stages in ((), (Rans(),), (UniformStep(1.0),), (UniformStep(1.0), Lzma()), (RawBytes(), Rans())):
        with pytest.raises(UsageError):
            Pipeline(stages)


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, [[]], [{"id": 3}], [{"id": "rans"}], [{"id": "raw-bytes"}] * 17, [{"id": "raw-bytes", "x": 1}],
        [{"id": "uniform-step", "step": 0}, {"id": "rans"}], [{"id": "uniform-step", "step": "1"}, {"id": "rans"}],
    ],
    ids=str,
)  # fmt: skip
def test_pipelines_that_make_no_sense_are_corrupt(document):
    with pytest.raises(CorruptError):
        pipeline_from_json(document)


def test_an_unknown_stage_asks_for_a_newer_release():
    with pytest.raises(NewerFormatError, match="'quantum'"):
        pipeline_from_json([{"id": "quantum"}])


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: " ".join(stage.id for stage in p.stages))
def test_a_stage_that_needs_a_base_says_so(pipeline):
    x = np.ones(3, np.float32)
    if pipeline.needs_base:
        with pytest.raises(UsageError, match="base"):
            pipeline.encode(x, Context.of(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("step", [1e-9, 0.01, 1e30])
def test_steps_and_bits_keep_every_bit(step, delta, dtype):
    pipeline = Pipeline((StepThenBits(step, delta), Rans()))
    for case, values in trouble(dtype).items():
        values = np.ascontiguousarray(values)
        context = Context.of(values, np.ascontiguousarray(values[::-1]) if delta else None)
        decoded = pipeline.decode(pipeline.encode(values, context), context)
        assert decoded.tobytes() == values.tobytes(), case


def test_what_was_quantized_costs_little_to_keep_exactly():
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, 100_000).astype(np.float32)
    lossy = Pipeline((SubtractBase(), UniformStep(1e-3), Rans()))
    target = (old + rng.normal(0, 1e-3, old.size)).astype(np.float32)
    update = lossy.encode(target, Context.of(target, old))
    new = lossy.decode(update, Context.of(target, old))
    back = Pipeline((StepThenBits(1e-3, delta=True), Rans()))
    assert len(back.encode(old, Context.of(old, new))) < 1.5 * len(update)
    assert len(Pipeline((ContextDelta(),)).encode(old, Context.of(old, new))) > 4 * len(update)


def test_powers_far_apart_are_those_near_each_other():
    """LogStep looks powers up in a table unless their exponents span too much: the same bits both ways."""
    rng = np.random.default_rng(0)
    stage = LogStep(1e-5, delta=False)
    near = rng.integers(-2000, 2000, 500).astype(np.int32) << 1
    far = np.concatenate([near, np.array([-(1 << 20), 1 << 20], np.int32)])
    far, near = far + (far > 0), near + (near > 0)
    decoded = [stage.decode(Coded(s), Context.of(np.zeros(s.size, np.float64))) for s in (near, far)]
    assert decoded[0].tobytes() == decoded[1][:500].tobytes()
    assert np.unique(decoded[0]).size > 300


def test_names_of_the_first_release_work_with_a_warning():
    indices, values = np.array([1, 3]), np.float32([5, 7])
    with pytest.warns(DeprecationWarning, match=r"Context\.of"):
        assert Context.alone(values).parts == (2,)
    with pytest.warns(DeprecationWarning, match="indices="):
        sparse = SparseValues(places=indices, values=values)
    assert sparse.indices is indices
    assert sparse.values is values
    with pytest.warns(DeprecationWarning, match="indices"):
        assert sparse.places is indices
    assert SparseValues(indices, values)._replace(indices=values).indices is values
    with pytest.raises(TypeError, match="needs indices and values"):
        SparseValues(values=values)
