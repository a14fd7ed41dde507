"""The page about a store: what it says, that nothing in it runs or is fetched, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.cli import cli
from nearzip.coding import Codings
from nearzip.report import write_report
from nearzip.report.facts import gather
from nearzip.report.svg import Series, lines
from store.helpers import history, memory_url, network

pytest.importorskip("jinja2")

#: Everything that a page would do harm with, were it not escaped.
HOSTILE = '<script>document.title="pwned"</script><img src=x onerror=alert(1)>"\'{{ 7 * 7 }}\u202e'


class _Page(HTMLParser):
    """Tags, attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def store(tmp_path):
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3), policy="hop:4")
    for i, version in enumerate(history(9, 4000)):
        store.commit(
            version, message=f"epoch {i}", metrics={"accuracy": 0.5 + i / 100, "loss": float("nan")},
            tags=["good"] if i == 4 else [], step=100 * i,
        )  # fmt: skip
    return store


def page(store, tmp_path, **options):
    facts = write_report(store, tmp_path / "report.html", force=True, **options)
    text = (tmp_path / "report.html").read_text("utf-8")
    return facts, text, _Page(text)


def test_what_it_says(store, tmp_path):
    facts, _, parsed = page(store, tmp_path)
    rows = store.log()
    assert facts.n_stored == sum(row.n_stored for row in rows) == store.stat().n_stored
    assert facts.n_bytes == sum(row.n_bytes for row in rows)
    for text in ("9versions", "hop:4", "abs:0.001", "epoch 8", "accuracy=0.58", "good", f"{facts.ratio:.1f}\xd7"):
        assert text in parsed.text, text
    assert parsed.tags.count("svg") == 6
    assert "no finite value" in parsed.text  # of the loss
    keys = [a for a in parsed.attributes if a[0] == "rect" and a[1:] == ("class", "key")]
    assert len(keys) >= sum(row.base is None for row in rows) == 3


def test_space_by_tensor_adds_up(store, tmp_path):
    facts = gather(store)
    assert {space.name for space in facts.spaces} == set(network())
    total = sum(space.n_stored for space in facts.spaces) + facts.n_described
    assert total == pytest.approx(facts.n_stored)
    assert facts.spaces[0].name == "weight"
    assert facts.n_looked_at == 9
    assert gather(store, newest=2).n_looked_at == 2


def test_what_pruning_would_free_is_what_it_frees_at_least(store, tmp_path):
    found = {row.rule: row for row in gather(store).freed}
    assert {"last:1", "tagged", "best:accuracy", "min:loss"} <= set(found)
    assert found["last:10"].n_freed == found["last:10"].n_dropped == 0
    assert found["last:5"].n_freed > 0
    (only,) = gather(store, rules=["last:1"]).freed
    assert (only.n_kept, only.n_dropped) == (1, 8)
    assert store.prune("last:1").n_freed >= only.n_freed > 0
    facts, _, parsed = page(store, tmp_path)
    assert (len(facts.live), len(facts.rows)) == (1, 9)
    assert "8 pruned" in parsed.text


def test_errors_beside_the_bound(store, tmp_path):
    versions = history(9, 4000)
    for number in (3, 8):
        nz.compress(versions[number]).save(tmp_path / f"{number}.nz")
    facts, text, _ = page(store, tmp_path, originals={"3": tmp_path / "3.nz", "latest": tmp_path / "8.nz"})
    assert {row.version for row in facts.errors} == {3, 8}
    restored = store.checkout(3)
    for row in (row for row in facts.errors if row.version == 3):
        error = np.abs(restored[row.name].astype(np.float64) - versions[3][row.name].astype(np.float64)).max(initial=0)
        assert row.share <= 1
        if restored[row.name].dtype.kind == "f":
            assert (row.largest, row.share) == (error, error / 1e-3)
    assert "Largest error over what was promised" in text


def test_a_broken_promise_is_seen(store, tmp_path):
    """Given what was not committed."""
    wrong = history(9, 4000)[8]
    wrong["weight"] = wrong["weight"] + np.float32(0.01)
    wrong["steps"] = np.array(77)
    nz.compress(wrong).save(tmp_path / "wrong.nz")
    facts, text, parsed = page(store, tmp_path, originals={"latest": tmp_path / "wrong.nz"})
    shares = {row.name: row.share for row in facts.errors}
    assert shares["weight"] > 9
    assert shares["steps"] == float("inf")
    assert "broken" in parsed.text
    assert 'class="over"' in text


@pytest.mark.parametrize("bound", [None, "rms:0.01", "pwrel:0.01", "rel:0.001"])
def test_errors_under_other_bounds(tmp_path, bound):
    store = nz.Store(tmp_path / "store", create=True, bound=bound)
    values = {"w": np.random.default_rng(0).normal(0, 1, 5000).astype(np.float32)}
    values["w"][:3] = [np.nan, np.inf, 0.0]
    store.commit(values)
    nz.compress(values).save(tmp_path / "w.nz")
    (row,) = gather(store, {"latest": tmp_path / "w.nz"}).errors
    assert 0 <= row.share <= 1
    assert (row.largest > 0) == (bound is not None)


def test_originals_that_do_not_fit(store, tmp_path):
    nz.compress({"other": np.zeros(3)}).save(tmp_path / "other.nz")
    with pytest.raises(errors.UsageError, match="is not what version 8 was made of"):
        gather(store, {"latest": tmp_path / "other.nz"})
    shaped = {**network(), "weight": np.zeros((2, 2), np.float32)}
    nz.compress(shaped).save(tmp_path / "shaped.nz")
    with pytest.raises(errors.UsageError, match="another dtype or shape"):
        gather(store, {"latest": tmp_path / "shaped.nz"})
    with pytest.raises(errors.NotFoundError):
        gather(store, {"77": tmp_path / "other.nz"})


def hostile(tmp_path):
    store = nz.Store(tmp_path / "hostile", create=True, bound="abs:0.001")
    for i in range(3):
        store.commit(
            {HOSTILE: np.full(40_000, i, np.float32), f"{'long.' * 60}w": np.arange(9.0)}, message=HOSTILE,
            metrics={"a/b": i}, tags=["b"], metadata={HOSTILE: HOSTILE},
        )  # fmt: skip
    return store


def checked_harmless(parsed):
    assert not parsed.open
    assert set(parsed.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "b", "div", "span", "table", "tr",
        "tbody", "th", "td", "svg", "line", "text", "rect", "circle", "polyline",
    }  # fmt: skip
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "href", "xlink:href", "srcset", "action", "data"), (tag, name)
        assert "url(" not in (value or ""), (tag, name, value)


def test_hostile_names_are_text(tmp_path):
    store = hostile(tmp_path)
    nz.compress(store.checkout()).save(tmp_path / "o.nz")
    _, text, parsed = page(store, tmp_path, originals={"latest": tmp_path / "o.nz"})
    checked_harmless(parsed)
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert "\u202e" not in text
    assert "{{ 7 * 7 }}" in parsed.text
    assert "alert(1)" in parsed.text


def test_an_empty_store(tmp_path):
    _, _, parsed = page(nz.Store(tmp_path / "store", create=True), tmp_path)
    checked_harmless(parsed)
    assert "No versions yet" in parsed.text


def test_damage_is_named(store, tmp_path):
    """And does not keep the rest from being shown."""
    manifest = store._versions.get(8)
    (path,) = (tmp_path / "store" / "objects" / name for name in manifest.objects)
    path.write_bytes(path.read_bytes()[:-7])
    facts, _, parsed = page(store, tmp_path)
    assert len(facts.damage) == 1
    assert "version 8" in facts.damage[0]
    assert "Damaged: version 8" in parsed.text
    path.unlink()
    assert "version 8" in gather(store).damage[0]


@pytest.mark.parametrize("recoded", [False, True])
def test_errors_of_versions_that_were_committed_under_a_plan(tmp_path, recoded):
    """The promise is that under which the tensor was committed, not the store's; re-encoding keeps it."""

    class Plan:
        def codings_for(self, names):
            chosen = {"weight": nz.Absolute(0.01), "bias": nz.Rms(0.1)}
            return Codings.of("nearzip", {"*": nz.Lossless(), **chosen}).for_tensors(names)

    store = nz.Store(tmp_path / "store", create=True, policy="forward")
    versions = history(4, 4000)
    for version in versions:
        store.commit(version, plan=Plan())
    if recoded:
        assert store.prune("last:1 2").recoded
    nz.compress(versions[3]).save(tmp_path / "3.nz")
    rows = {row.name: row for row in gather(store, originals={"3": tmp_path / "3.nz"}).errors}
    assert rows["weight"].promise == "0.01"
    assert 0 < rows["weight"].share <= 1
    assert 0 < rows["bias"].share <= 1
    assert rows["bias"].promise != "every bit"
    assert rows["steps"].promise == "every bit"
    assert max(row.share for row in rows.values()) <= 1


def test_many_versions(tmp_path):
    store = nz.Store(memory_url(), create=True, bound="abs:0.001")
    for i in range(300):
        store.commit({"w": np.full(8, i, np.float32)}, metrics={"m": np.sin(i / 9)})
    facts, text, parsed = page(store, tmp_path)
    checked_harmless(parsed)
    assert len(facts.live) == 300
    assert "The newest 200 of 300" in parsed.text
    assert len(text) < 400_000


@pytest.mark.parametrize("values", [
    [], [float("nan")], [1.0], [0.0, 0.0], [-1e308, 1e308], [1e-320, 2e-320], [float("inf"), 3.0], [-5.0, 1e-9, 7e11],
])  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_lines_of_strange_values(values, log):
    drawn = lines("m", [Series("m", list(enumerate(values)))], "{:.3g}".format, log)
    assert "nan" not in drawn
    assert "inf" not in drawn
    for number in re.findall(r' (?:cx|cy|y1|y|x)="(-?[\d.]+)"', drawn):
        assert 0 <= float(number) <= 900


def test_a_file_that_is_there_is_not_replaced_unasked(store, tmp_path):
    write_report(store, tmp_path / "r.html")
    with pytest.raises(errors.UsageError, match="exists already"):
        write_report(store, tmp_path / "r.html")
    with pytest.raises(errors.NotFoundError):
        write_report(store, tmp_path / "no" / "r.html")


def test_without_jinja2(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(errors.MissingExtraError, match=r"nearzip\[report\]"):
        write_report(store, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_command(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["store", "report", *arguments])
        return end.value.code, *capsys.readouterr()

    nz.compress(history(9, 4000)[8]).save("8.nz")
    code, out, _ = run("store", "-o", "r.html", "--original", "step=800=8.nz", "--keep", "last:2")
    assert code == 0
    assert "errors    at most" in out
    assert run("store", "-o", "r.html")[0] == 2
    code, out, _ = run("store", "-o", "r.html", "--force", "--json")
    document = json.loads(out)
    assert (document["versions"], document["worst_share"], document["damage"]) == (9, None, [])
    assert document["sections"]["sizes"]["versions"] == 9
    assert document["sections"]["metrics"]["newest"] == {"accuracy": 0.58, "loss": None}
    assert document["sections"]["chains"] == {"keyframes": [0, 4, 8], "longest": 3}
    assert document["failed_sections"] == {}
    assert run("store", "-o", "x.html", "--keep", "nonsense")[0] == 2
    assert run("store", "-o", "x.html", "--original", "nonsense")[0] == 2
    assert run("nowhere", "-o", "x.html")[0] == 10
    next((tmp_path / "store" / "objects").iterdir()).unlink()
    assert run("store", "-o", "x.html")[0] == 1


# ---- a browser -------------------------------------------------------------------------------------------------


def browse(file, tmp_path, *options):
    """What headless Chromium prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    run = subprocess.run(
        [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1000,2600", *options, file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_in_a_browser(tmp_path):
    store = hostile(tmp_path)
    _, text, parsed = page(store, tmp_path)
    found = _Page(browse(tmp_path / "report.html", tmp_path, "--dump-dom"))
    checked_harmless(found)
    assert "pwned" not in re.search(r"<title>(.*?)</title>", text)[1]
    # The browser sees the elements that we wrote, and made none of its own but the tables' bodies.
    assert [tag for tag in found.tags if tag != "tbody"] == parsed.tags
    picture = tmp_path / "picture.png"
    browse(tmp_path / "report.html", tmp_path, f"--screenshot={picture}")
    pixels = np.asarray(pytest.importorskip("PIL.Image").open(picture).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20  # text and bars, not an empty page
