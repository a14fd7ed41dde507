"""Which method and bound apply to which tensor: bounds by name, plans, blocks that are never cut, no promise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

import nearzip as nz
from nearzip.bounds import NoPromise, Statistics, violations
from nearzip.cli import cli
from nearzip.coding import Coding, Codings
from nearzip.digests import PIECE_BYTES
from nearzip.errors import UsageError
from nearzip.recipes import PLUGINS, Recipe, TensorPlan, Unpromised, recipe_type, recipe_types
from nearzip.stages import Pipeline, Rans, RawBytes, UniformStep

rng = np.random.default_rng(0)
NETWORK = {
    "a.weight": rng.normal(0, 0.1, (40, 30)).astype(np.float32),
    "a.bias": rng.normal(0, 0.1, 40).astype(np.float32),
    "b.weight": rng.normal(0, 0.1, (30, 30)).astype(np.float32),
    "b.bias": rng.normal(0, 0.1, 30).astype(np.float32),
    "steps": np.array(7, np.int64),
}
BASE = {
    name: a + rng.normal(0, 1e-3, a.shape).astype(a.dtype) if a.dtype.kind == "f" else a for name, a in NETWORK.items()
}


def errors(archive, base=None):
    restored = nz.decompress(archive.to_bytes(), base=base)
    return {name: float(np.abs(restored[name].astype(float) - a.astype(float)).max()) for name, a in NETWORK.items()}


# ---- bounds by name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [None, BASE], ids=["alone", "update"])
def test_each_tensor_keeps_its_own_bound(base):
    bound = {"*": "abs:1e-2", "*.bias": nz.Lossless(), "b.weight": nz.Absolute(1e-4)}
    archive = nz.compress(NETWORK, base=base, bound=bound)
    worst = errors(archive, base)
    assert worst["a.bias"] == worst["b.bias"] == worst["steps"] == 0
    assert 1e-3 < worst["a.weight"] <= 1e-2
    assert 1e-6 < worst["b.weight"] <= 1e-4


def test_a_name_comes_before_patterns_and_those_in_order():
    bound = {"*.weight": "abs:0.1", "a.*": "abs:1e-3", "b.weight": "lossless", "*": "abs:1e-5"}
    worst = errors(nz.compress(NETWORK, bound=bound))
    assert worst["a.weight"] > 1e-2
    assert worst["b.weight"] == 0
    assert 1e-5 < worst["a.bias"] <= 1e-3
    assert 0 < worst["b.bias"] <= 1e-5


def test_without_a_star_the_rest_has_the_methods_own_bound():
    worst = errors(nz.compress(NETWORK, bound={"a.weight": "abs:0.01"}))
    assert worst["a.weight"] > 0
    assert worst["b.weight"] == 0


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(UsageError, match=r"'\*\.biass', which is no tensor"):
        nz.compress(NETWORK, bound={"*": "abs:1e-3", "*.biass": "lossless"})
    with pytest.raises(UsageError, match="cannot promise"):
        nz.compress(NETWORK, bound={"*": nz.Rms(0.1)}, method="delta-dnn")


def test_one_bound_for_all_makes_the_same_bytes_as_a_star():
    one, other = (nz.compress(NETWORK, base=BASE, bound=b).to_bytes() for b in (nz.Rms(0.01), {"*": nz.Rms(0.01)}))
    assert one == other


def test_statistics_of_the_network_are_of_tensors_with_one_setting():
    big = NETWORK | {"big": np.linspace(-1e6, 1e6, 100, dtype=np.float32)}
    together = nz.compress(big, bound={"*": nz.Rms(0.01), "big": nz.Rms(0.1)})
    apart = nz.compress(NETWORK, bound=nz.Rms(0.01))
    assert all(together.restored[name].tobytes() == apart.restored[name].tobytes() for name in NETWORK)


def test_the_archive_says_which_tensors_have_other_settings(tmp_path):
    archive = nz.compress(NETWORK, bound={"*": "abs:1e-2", "*.bias": "lossless"})
    archive.save(tmp_path / "a.nz")
    document = json.loads(CliRunner().invoke(cli, ["inspect", "--json", str(tmp_path / "a.nz")]).stdout)
    assert document["bound"] == {"kind": "abs", "value": 0.01}
    (other,) = document["method"]["others"]
    assert (other["name"], other["bound"], other["tensors"]) == ("nearzip", {"kind": "lossless"}, [1, 3])
    assert "2 tensors: nearzip, lossless" in CliRunner().invoke(cli, ["inspect", str(tmp_path / "a.nz")]).stdout


# ---- plans -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    given: dict

    def codings_for(self, names):
        return Codings(Coding.of("nearzip", nz.Absolute(1e-2)), self.given).codings_for(names)


@dataclass(frozen=True)
class _FirstRelease:
    """A plan as other packages wrote them for release 0.1."""

    given: dict

    def assignments(self, names):
        return {name: self.given[name] for name in names if name in self.given}


def plan(**codings):
    return _Plan({name.replace("_", "."): coding for name, coding in codings.items()})


@pytest.mark.parametrize("base", [None, BASE], ids=["alone", "update"])
def test_a_plan_gives_each_tensor_its_method_and_bound(base):
    archive = nz.compress(
        NETWORK, base=base,
        plan=plan(a_bias=Coding.of("zstd"), b_weight=Coding.of("delta-dnn", nz.Absolute(1e-4))),
    )  # fmt: skip
    worst = errors(archive, base)
    assert worst["a.bias"] == 0
    assert 0 < worst["b.weight"] <= 1e-4 < worst["a.weight"] <= 1e-2
    with nz.open(archive, base=base) as reader:
        stages = {report.spec.name: report.stages for report in reader.tensor_reports()}
    assert stages["a.bias"] == ("raw-bytes", "zstd")
    assert stages["b.weight"][-2:] == ("run-lengths", "lzma")


def test_a_method_that_uses_no_base_is_not_blamed_for_coding_alone():
    given = plan(a_bias=Coding.of("zstd"))
    archive = nz.compress(NETWORK, base={n: a for n, a in BASE.items() if n != "a.bias"}, plan=given)
    assert archive.report.without_base == {}
    assert nz.compress(NETWORK, base=BASE, plan=_Plan(dict.fromkeys(NETWORK, Coding.of("zstd")))).base_id is None


def test_a_plan_in_a_file(tmp_path):
    np.savez(tmp_path / "new.npz", **NETWORK)
    nz.compress_file(tmp_path / "new.npz", tmp_path / "new.nz", plan=plan())
    assert max(errors(nz.compress(NETWORK, plan=plan())).values()) <= 1e-2
    assert nz.decompress(tmp_path / "new.nz").keys() == NETWORK.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plan": plan(), "bound": "abs:1"}, "not both"),
        ({"plan": plan(), "options": {}}, "not both"),
        ({"plan": object()}, "a plan comes from"),
        ({"plan": plan(a_bias=Coding("delta-dnn", {}, nz.Rms(1)))}, "cannot promise"),
    ],
    ids=["bound", "options", "no plan", "bound that cannot be kept"],
)
def test_plans_that_cannot_be_meant_are_refused(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        nz.compress(NETWORK, **arguments)
    np.savez(tmp_path / "new.npz", **NETWORK)
    with pytest.raises(UsageError, match=message):
        nz.compress_file(tmp_path / "new.npz", tmp_path / "new.nz", **arguments)
    assert not (tmp_path / "new.nz").exists()


def test_plans_of_the_first_release_are_read_with_a_warning():
    lossless = (recipe_type("nearzip")(), None)
    with pytest.warns(DeprecationWarning, match="codings_for"):
        archive = nz.compress(NETWORK, plan=_FirstRelease(dict.fromkeys(NETWORK, lossless)))
    assert not any(errors(archive).values())
    with (
        pytest.warns(DeprecationWarning, match="codings_for"),
        pytest.raises(UsageError, match=r"says nothing about tensor 'a\.weight'"),
    ):
        nz.compress(NETWORK, plan=_FirstRelease({}))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [(nz.recipes, "Setting", Coding), (nz.recipes, "Settings", Codings), (nz.budget, "Choice", Coding),
     (nz.budget, "Assignment", Codings)],
)  # fmt: skip
def test_names_of_the_first_release_are_there_with_a_warning(module, old, new):
    with pytest.warns(DeprecationWarning, match=f"nearzip.coding.{new.__name__}"):
        assert getattr(module, old) is new
    with pytest.raises(AttributeError):
        module.Nothing  # noqa: B018


# ---- recipes of other kinds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Coarse(Unpromised):
    """Rounds to a step that it takes from the values; one block a tensor."""

    name = "coarse"
    whole_tensors = True
    seen: ClassVar[list[tuple[str, tuple[int, ...], bool]]] = []

    def plan(self, tensor, bound):
        values = tensor.values()
        self.seen.append((tensor.name, values.shape, tensor.with_base))
        if tensor.with_base:
            assert tensor.base_values().shape == tensor.shape
        else:
            with pytest.raises(UsageError, match="no base"):
                tensor.base_values()
        assert tensor.own == Statistics.of(values)
        step = max(tensor.own.largest, 1e-30)
        return TensorPlan(Pipeline((UniformStep(step), Rans())), bound.tolerance(tensor.own))


@dataclass(frozen=True)
class _Uncut(_Coarse):
    """The same, small tensors grouped."""

    name = "uncut"
    whole_tensors = False
    cut_tensors = False

    def plan(self, tensor, bound):
        return TensorPlan(Pipeline((RawBytes(),)), bound.tolerance(tensor.own))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(PLUGINS, "load", {"coarse": _Coarse, "uncut": _Uncut}.get)
    _Coarse.seen.clear()


LARGE = NETWORK | {"large": np.zeros((5 << 20, 4), np.float32)}


@pytest.mark.usefixtures("registered")
def test_whole_tensors_are_one_block_each_however_large():
    archive = nz.compress(LARGE, base=BASE, method="coarse", threads=2)
    segments = {s.tensors[0].name: s for s in archive.report.index.segments}
    assert all(len(s.tensors) == len(s.blocks) == 1 for s in segments.values())
    assert segments["large"].block_bytes == 80 << 20
    assert segments["a.bias"].block_bytes == PIECE_BYTES
    assert _Coarse.seen[-1] == ("large", (5 << 20, 4), False)
    assert ("a.bias", (40,), True) in _Coarse.seen
    restored = nz.decompress(archive.to_bytes(), base=BASE)
    assert all(restored[name].tobytes() == archive.restored[name].tobytes() for name in LARGE)


@pytest.mark.usefixtures("registered")
def test_uncut_tensors_share_blocks_but_are_never_cut():
    archive = nz.compress(LARGE, method="uncut", threads=1)
    sizes = {len(s.tensors): len(s.blocks) for s in archive.report.index.segments if s.tensors[0].dtype == "float32"}
    assert sizes == {1: 1, 4: 1}


@pytest.mark.usefixtures("registered")
def test_a_method_without_a_promise_says_so(tmp_path):
    x = {"x": np.array([1.0, np.nan, -np.inf, 3.0, -0.0], np.float32)}
    archive = nz.compress(x, method="coarse")
    assert archive.report.index.bound == {"kind": "no promise"}
    restored = nz.decompress(archive.to_bytes())["x"]
    assert restored[1:3].tobytes() == x["x"][1:3].tobytes()
    assert np.isfinite(restored[[0, 3, 4]]).all()
    with pytest.raises(UsageError, match=r"promises nothing against its input, so it cannot keep abs:0\.1"):
        nz.compress(x, method="coarse", bound="abs:0.1")
    archive.save(tmp_path / "a.nz")
    assert "no promise" in CliRunner().invoke(cli, ["inspect", str(tmp_path / "a.nz")]).stdout


def test_no_promise_is_nothing_to_ask_for():
    with pytest.raises(UsageError, match="keeps a bound"):
        nz.compress(NETWORK, bound=NoPromise())
    with pytest.raises(UsageError, match="cannot read the bound"):
        nz.compress(NETWORK, bound="no promise")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e5m2"])
def test_no_promise_still_keeps_what_is_not_finite(dtype):
    from nearzip.tensors import DTYPES

    tolerance = NoPromise().tolerance(Statistics())
    x = np.array([1, np.nan, np.inf, -np.inf, 2], np.float32).astype(DTYPES[dtype])
    y = x.copy()
    assert not violations(x, y, tolerance).size
    y[0] = 100
    assert not violations(x, y, tolerance).size
    y[4] = np.inf
    y[1] = 0
    y[3] = np.inf
    assert violations(x, y, tolerance).tolist() == [1, 3, 4]


def test_recipes_are_hashable_with_their_options():
    for kind in recipe_types().values():
        assert isinstance(kind, type)
        assert issubclass(kind, Recipe)
        assert hash(kind()) == hash(kind())


# ---- from the shell --------------------------------------------------------------------------------------------


def test_bounds_by_pattern_from_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("new.npz", **NETWORK)
    command = ["compress", "new.npz", "-o", "new.nz", "--bound", "abs:1e-2", "--bound", "*.bias=lossless"]
    run = CliRunner().invoke(cli, [*command, "--json"])
    assert run.exit_code == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["bound"] == {"kind": "abs", "value": 0.01}
    assert document["method"]["others"][0]["tensors"] == [1, 3]
    worst = errors(nz.compress(NETWORK, bound={"*": "abs:1e-2", "*.bias": "lossless"}))
    assert worst["a.bias"] == 0
    for extra, says in (("abs:1", "given twice"), ("=abs:1", "PATTERN=BOUND"), ("nothing*=abs:1", "matches none")):
        run = CliRunner().invoke(cli, [*command, "--force", "--bound", extra])
        assert run.exit_code == 2
        assert says in run.stderr
