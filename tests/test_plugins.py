"""Plug-ins: the example package, loaded through real entry points, and packages that are broken in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import recipes, stages
from nearzip.errors import CorruptError, NewerFormatError, PluginError, UnknownMethodError, UsageError
from nearzip.recipes import recipe_type, recipe_types
from nearzip.report import sections, write_report
from nearzip.stages import pipeline_from_json, registry, stage_types
from nearzip.store import backends
from nearzip.testing.contract import check_recipe, check_stage, examples_of

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin"
W = {"w": np.linspace(-1, 1, 999, dtype=np.float32), "n": np.arange(5)}


def forget() -> None:
    for plugins in (recipes.PLUGINS, registry.PLUGINS, backends.PLUGINS, sections.PLUGINS):
        plugins.forget()


def install(folder: Path, name: str, points: str) -> None:
    """The metadata that an installer writes."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points)


def entry_points_of(pyproject: str) -> str:
    """`[project.entry-points."group"]` tables in the form of an installed package."""
    groups = re.findall(r'\[project\.entry-points\."([^"]+)"\]\n((?:[^\[\n]+\n)+)', pyproject)
    return "\n".join(f"[{group}]\n{rows}".replace('"', "") for group, rows in groups)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example package, installed in a folder on the path."""
    folder = tmp_path / "site"
    install(folder, "nearzip-example", entry_points_of((EXAMPLE / "pyproject.toml").read_text()))
    shutil.copytree(EXAMPLE / "src" / "nearzip_example", folder / "nearzip_example")
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()
    for module in [name for name in sys.modules if name.split(".")[0] == "nearzip_example"]:
        del sys.modules[module]


BROKEN = {
    "missing-module": ("nowhere_at_all:Thing", "No module named 'nowhere_at_all'"),
    "missing-class": ("json:Nothing", "Nothing"),
    "no-class": ("json:dumps", "no subclass"),
    "another-class": ("decimal:Decimal", "no subclass"),
    "raises": ("broken_on_import:Thing", "RuntimeError: not today"),
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package all of whose plug-ins are broken, one of them under a built-in name."""
    folder = tmp_path / "broken-site"
    rows = "".join(f"{name} = {target}\n" for name, (target, _) in BROKEN.items())
    groups = "".join(f"[{group}]\n{rows}gzip = nowhere:Gzip\n" for group in ("nearzip.recipes", "nearzip.stages"))
    install(folder, "broken-plugin", f"{groups}[nearzip.backends]\nbroken = nowhere:open\nnocall = sys:maxsize\n")
    (folder / "broken_on_import.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


# ---- the example -----------------------------------------------------------------------------------------------


def test_a_method_and_a_stage_of_another_package_pass_the_contract(example: Path) -> None:
    assert recipe_types()["example-bytes"] is recipe_type("example-bytes")
    for stage in examples_of(stage_types()["example-byte-delta"]):
        check_stage(stage)
    for recipe in examples_of(recipe_type("example-bytes")):
        check_recipe(recipe)


def test_archives_of_a_plug_in_need_it_and_say_so(example: Path) -> None:
    data = nz.compress(W, method="example-bytes").to_bytes()
    restored = nz.decompress(data)
    assert all(restored[name].tobytes() == value.tobytes() for name, value in W.items())
    assert nz.methods()["example-bytes"] == "Example: differences of bytes, Zstandard; lossless."
    sys.path.remove(str(example))
    forget()
    with pytest.raises(NewerFormatError, match=r"'example-byte-delta'.*install the plug-in that provides it"):
        nz.decompress(data)
    with pytest.raises(UnknownMethodError, match="unknown method 'example-bytes'; known are nearzip"):
        nz.compress(W, method="example-bytes")


def test_parameters_of_a_plug_in_s_stage_are_untrusted(example: Path) -> None:
    for parameters in ({"distance": 0}, {"distance": "4"}, {"distance": 1e9}, {"other": 1}):
        with pytest.raises(CorruptError):
            pipeline_from_json([{"id": "raw-bytes"}, {"id": "example-byte-delta", **parameters}])


def test_a_store_backend_of_another_package(example: Path, tmp_path: Path) -> None:
    options = {"cabinet": str(tmp_path)}
    number = nz.Store("drawer://letters", create=True, storage_options=options, bound="lossless").commit(W)
    assert np.array_equal(nz.Store("drawer://letters", storage_options=options).checkout(number)["w"], W["w"])
    assert (tmp_path / "letters").is_dir()
    with pytest.raises(UsageError, match="cabinet"):
        nz.Store("drawer://letters")


def test_a_report_has_the_section_of_another_package(example: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    store = nz.Store(tmp_path / "store", create=True, bound="lossless")
    store.commit(W)
    assert "example-tags" not in write_report(store, tmp_path / "untagged.html").sections
    store.commit(W, tags=["good"])
    facts = write_report(store, tmp_path / "r.html")
    assert list(facts.sections)[-2:] == ["versions", "example-tags"]
    assert facts.sections["example-tags"] == {"good": [1]}
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.index("<h2>Versions</h2>") < page.index("<h2>Tags</h2>") < page.index("<li>good: 1</li>")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def html(self, view): return 1 / 0", "ZeroDivisionError"),
        ("def data(self, view): return {'x': object()}", "TypeError: Object of type object"),
        ("def applies(self, view): raise ValueError('<b>')", "ValueError: <b>"),
        ("name = 'another'", "not the entry point's 'mine'"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
    ],
)
def test_a_section_that_fails_is_named_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    pytest.importorskip("jinja2")
    folder = tmp_path / "site"
    install(folder, "failing", "[nearzip.report_sections]\nmine = failing_section:Mine\nsizes = nowhere:Sizes\n")
    (folder / "failing_section.py").write_text(
        "from nearzip.report import Section\n\nclass Mine(Section):\n    name = title = 'mine'\n"
        "    def data(self, view): return {}\n    def html(self, view): return '<p>fine</p>'\n    " + body + "\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    forget()
    store = nz.Store(tmp_path / "store", create=True, bound="lossless")
    store.commit(W)
    facts = write_report(store, tmp_path / "r.html")
    sys.modules.pop("failing_section", None)
    forget()
    assert list(facts.sections) == [kind.name for kind in sections.BUILT_IN]
    assert reason in facts.failed_sections["mine"]
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "This section could not be made" in page
    assert "<b>&#39;" not in page
    assert "<h2>Sizes</h2>" in page


def test_the_command_line_knows_them(example: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(example)}
    run = subprocess.run(
        [sys.executable, "-m", "nearzip", "methods", "--json"], env=env, capture_output=True, text=True, check=True
    )
    rows = {row["name"]: row for row in json.loads(run.stdout)["methods"]}
    assert rows["example-bytes"]["options"] == {"level": 3}
    assert rows["example-bytes"]["stability"] == "experimental"
    assert rows["nearzip"]["stability"] == "stable"
    assert rows["nearzip"]["experimental_options"] == ["lattice", "unbiased"]


def test_the_page_shows_the_package_as_it_is() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    pyproject = (EXAMPLE / "pyproject.toml").read_text()
    assert pyproject[pyproject.index("[project.entry-points") :].strip() in page
    for path in (EXAMPLE / "src" / "nearzip_example").glob("[!_]*.py"):
        text = path.read_text().replace("from nearzip_example.stage import ByteDelta\n", "").strip()
        assert f"```python\n{text}\n```" in page, path.name


# ---- broken ones -----------------------------------------------------------------------------------------------


def test_a_broken_plug_in_harms_nothing_else(broken: Path) -> None:
    for method in ("nearzip", "gzip", "zstd"):
        archive = nz.compress(W, method=method)
        assert np.array_equal(nz.decompress(archive.to_bytes())["w"], archive.restored["w"])
    assert not set(BROKEN) & set(recipe_types())
    assert not set(BROKEN) & set(stage_types())
    assert stage_types()["gzip"] is stages.Gzip
    assert recipe_types()["gzip"].summary().startswith("Baseline")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_named_where_it_is_asked_for(broken: Path, name: str) -> None:
    target, cause = BROKEN[name]
    with pytest.raises(PluginError) as found:
        nz.compress(W, method=name)
    for part in (f"method {name!r}", "broken-plugin 1.0", target, cause):
        assert part in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(PluginError, match=f"stage {name!r} of the plug-in broken-plugin"):
        pipeline_from_json([{"id": "raw-bytes"}, {"id": name}])
    assert nz.methods()[name] == str(found.value)


@pytest.mark.parametrize("scheme", ["broken", "nocall"])
def test_a_broken_backend_is_named(broken: Path, tmp_path: Path, scheme: str) -> None:
    with pytest.raises(PluginError, match=f"store backend '{scheme}' of the plug-in broken-plugin 1.0"):
        nz.Store(f"{scheme}://here", create=True)
    nz.Store(tmp_path / "store", create=True)
    nz.Store("memory://plugins", create=True)


def test_a_class_that_calls_itself_otherwise_is_refused(example: Path) -> None:
    points = example / "nearzip_example-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("example-bytes =", "other-name ="))
    forget()
    with pytest.raises(PluginError, match=r"its name is 'example-bytes', not the entry point's 'other-name'"):
        recipe_type("other-name")


def test_the_command_line_lists_a_broken_one_with_its_error(broken: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(broken)}
    run = subprocess.run(
        [sys.executable, "-m", "nearzip", "methods"], env=env, capture_output=True, text=True, check=True
    )
    assert "missing-module (broken)\n    method 'missing-module' of the plug-in broken-plugin 1.0" in run.stdout
    run = subprocess.run(
        [sys.executable, "-m", "nearzip", "compress", "x.npz", "-o", "y.nz", "--method", "raises"],
        env=env,
        cwd=broken,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (3, 10)
    assert run.stderr.count("\n") == 1
