"""How tensors are coded: one value from every entrance to the file and back."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip.bounds import Tolerance
from nearzip.buffers import WriteBuffer
from nearzip.choice import exact_pipeline
from nearzip.coding import Coding, Codings, bound_from_json
from nearzip.coding_index import codings_in
from nearzip.errors import CorruptError, UnknownMethodError, UsageError
from nearzip.matching import match_tensors, matched
from nearzip.recipes import TensorPlan, recipe_type
from nearzip.store.steps import last_steps
from nearzip.tensors import Checkpoint
from nearzip.writing import write_archive

FORMATS = Path(__file__).parent / "formats"
BOUNDS = ["lossless", "abs:1e-3", "rel:0.01", "pwrel:0.01", "rms:0.1", "upd:0.1", "upd:0.1:tensor"]


def network(shift=0.0):
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": rng.normal(size=(40, 50)).astype(np.float32) for name in "abc"}
    return {name: array + np.float32(shift) * rng.normal(size=array.shape).astype(np.float32)
            for name, array in tensors.items()} | {"b.bias": np.ones(3, np.float32)}  # fmt: skip


# ---- one coding ------------------------------------------------------------------------------------------------


def test_a_coding_is_checked_when_it_is_made():
    with pytest.raises(UnknownMethodError, match="no such"):
        Coding.of("no such")
    with pytest.raises(UsageError, match="no option"):
        Coding.of("nearzip", options={"nothing": 1})
    with pytest.raises(UsageError, match="cannot promise"):
        Coding.of("delta-dnn", "rms:1")
    with pytest.raises(UsageError, match="a bound is"):
        Coding.of("nearzip", 0.1)  # type: ignore[arg-type]


def test_codings_are_equal_if_they_code_alike():
    spelled = [Coding.of("nearzip"), Coding.of("nearzip", "lossless"), Coding.of("nearzip", options={"finer": "0.02"}),
               Coding.of(recipe_type("nearzip")()), Coding()]  # fmt: skip
    assert len(set(spelled)) == 1
    others = [
        Coding.of("nearzip", "abs:1"), Coding.of("nearzip", options={"step": 1}), Coding.of("zstd"),
        Coding.of("nearzip", with_base=False), Coding("elsewhere"), Coding("elsewhere", {"quality": [3]}),
    ]  # fmt: skip
    assert len({*others, spelled[0]}) == 7


@pytest.mark.parametrize("bound", [None, *BOUNDS])
def test_a_coding_reads_back_from_its_document(bound):
    coding = Coding.of("nearzip", bound, {"finer": 0.5})
    again = Coding.from_json(coding.to_json(), "here")
    assert (again, again.bound) == (coding, coding.bound)
    assert pickle.loads(pickle.dumps(coding)) == coding  # noqa: S301
    apart = Coding.of("nearzip", bound, with_base=False)
    assert Coding.from_json(apart.to_json(), "here") == apart
    assert set(coding.to_json()) == {"method", "options", "bound"}, "plans of the first release have no other fields"


def test_a_coding_of_another_installation_is_read_and_fails_when_it_is_used():
    coding = Coding.from_json({"method": "pictures", "options": {"quality": 3}, "bound": None}, "here")
    assert str(coding) == "pictures quality=3"
    with pytest.raises(UnknownMethodError, match="pictures"):
        coding.checked()


@pytest.mark.parametrize(
    "document",
    [None, {}, {"kind": "abs"}, {"kind": "abs", "value": -1.0}, {"kind": "abs", "value": "1"}, {"kind": 3},
     {"kind": "later", "value": 1.0}, {"kind": "lossless", "more": 1}],
)  # fmt: skip
def test_bounds_of_damaged_documents_are_refused(document):
    with pytest.raises(CorruptError, match="here"):
        bound_from_json(document, "here")


# ---- codings of all tensors ------------------------------------------------------------------------------------


def test_names_come_before_patterns_and_the_rest_has_the_default():
    codings = Codings.of("nearzip", {"*.weight": "abs:1", "a.weight": "abs:2", "a*": "abs:3", "*": "abs:4"})
    bounds = {"a.weight": 2, "b.weight": 1, "a.bias": 3, "c.bias": 4}
    for found in (codings, codings.for_tensors(bounds)):
        assert {name: found[name].bound for name in bounds} == {name: nz.Absolute(x) for name, x in bounds.items()}
    with pytest.raises(UsageError, match="'a\\*', which is no tensor"):
        codings.for_tensors(["a.weight", "b.weight"])


def test_the_most_frequent_coding_of_a_plan_comes_first():
    codings = Codings(Coding.of("nearzip", "abs:1"), {"b": Coding.of("zstd"), "c": Coding.of("zstd")})
    planned = codings.codings_for(["a", "b", "c"])
    assert planned.default == Coding.of("zstd")
    assert planned["a"] == Coding.of("nearzip", "abs:1")
    groups = planned.distinct(["a", "b", "c"])
    assert list(groups.items()) == [(Coding.of("nearzip", "abs:1"), ["a"]), (Coding.of("zstd"), ["b", "c"])]


# ---- and back out of the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, *BOUNDS, {"*.bias": "lossless", "*": "upd:0.1:tensor", "a*": "rms:0.01"}])
def test_an_archive_says_how_its_tensors_were_coded(bound):
    archive = nz.compress(network(0.01), network(), bound=bound)
    asked = Codings.of("nearzip", bound).for_tensors(network())
    with nz.open(archive, network()) as reader:
        found = reader.codings
    assert {name: found[name] for name in network()} == {name: asked[name] for name in network()}
    assert found.default == asked.default


def test_archives_of_every_release_say_how_they_were_coded():
    paths = sorted(FORMATS.rglob("*.nz"))
    assert len(paths) > 20
    for path in paths:
        with nz.open(path) as reader:
            for name in reader:
                assert reader.codings[name].recipe.name == reader.codings[name].method


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"options": {}}},
        {"method": {"name": 3, "options": {}}},
        {"method": {"name": "nearzip", "options": [1]}},
        {"method": {"name": "nearzip", "options": {}, "others": 3}},
        {"method": {"name": "nearzip", "options": {}, "others": [3]}},
        {"method": {"name": "nearzip", "options": {}, "others": [{"name": "zstd", "bound": {"kind": "lossless"}}]}},
        {"method": {"name": "nearzip", "options": {}, "others": [
            {"name": "zstd", "bound": {"kind": "lossless"}, "tensors": [4]}]}},
        {"method": {"name": "nearzip", "options": {}, "others": [
            {"name": "zstd", "bound": {"kind": "lossless"}, "tensors": [-1]}]}},
        {"bound": {"kind": "later"}},
    ],
)  # fmt: skip
def test_what_an_index_cannot_mean_is_refused(changes):
    index = nz.compress(network()).report.index
    with pytest.raises(CorruptError, match="index, method"):
        codings_in(dataclasses.replace(index, **changes))


# ---- what is stored in place of the tensors, and the steps of the base -----------------------------------------


def written(source, base, codings):
    stream, kept = WriteBuffer(source.n_bytes), {}
    report = write_archive(source, base, codings, stream, kept.__setitem__, 1)
    return report, kept


def test_substitutes_are_stored_and_bounds_are_kept_against_the_tensors():
    tensors = network()
    moved = {"a.weight": np.round(tensors["a.weight"] * 4) / 4, "b.weight": tensors["b.weight"] + np.float32(1)}
    codings = dataclasses.replace(Codings.of("nearzip", "abs:0.2"), substitutes=moved)
    report, kept = written(Checkpoint.of(tensors), None, codings)
    assert np.abs(kept["a.weight"] - moved["a.weight"]).max() <= 0.2
    for name, array in tensors.items():
        assert np.abs(kept[name] - array).max() <= 0.2
    assert report.n_patched >= tensors["b.weight"].size
    assert codings == codings.without_substitutes()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_base_carries_its_steps(renamed):
    """The next version keeps the step of its base while the bound allows it, under whatever name the base has it."""
    report, kept = written(Checkpoint.of(network()), None, Codings.of("nearzip", "abs:0.01"))
    steps = last_steps(report.index)
    names = {name: f"module.{name}" if renamed else name for name in kept}
    base = Checkpoint.of({names[name]: array for name, array in kept.items()})
    carrying = dataclasses.replace(base, steps={names[name]: own for name, own in steps.items()})
    source, wider = Checkpoint.of(network(0.1)), Codings.of("nearzip", "abs:0.011")
    assert last_steps(written(source, carrying, wider)[0].index) == steps
    assert last_steps(written(source, base, wider)[0].index) != steps
    seen = matched(carrying, source.specs, match_tensors(source, carrying))
    assert {name: seen.steps[name] for name in steps} == steps


def test_names_of_the_first_release():
    pipeline, tolerance = exact_pipeline(False), Tolerance("exact")
    with pytest.warns(DeprecationWarning, match="own_block="):
        assert TensorPlan(pipeline, tolerance, alone=True) == TensorPlan(pipeline, tolerance, own_block=True)
    with pytest.warns(DeprecationWarning, match="own_block"):
        assert TensorPlan(pipeline, tolerance, True).alone
    assert dataclasses.replace(TensorPlan(pipeline, tolerance), own_block=True).own_block
    report = nz.compress({"w": np.ones(3, np.float32)}, {"v": np.ones(3, np.float32)}).report
    with pytest.warns(DeprecationWarning, match="without_base"):
        assert report.alone == {"w": "new"}
    with pytest.warns(DeprecationWarning, match="uncalibrated"):
        assert report.plain == {}
