"""nearzip dataset: what the commands write, print and return."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from click.testing import CliRunner

from nearzip import datasets
from nearzip.cli.commands import cli
from tests.nzd.pictures import pictures


def run(*arguments: object):
    return CliRunner().invoke(cli, ["dataset", *map(str, arguments)])


def printed(*arguments: object):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", images=pictures(40), labels=np.arange(40) % 4)
    return tmp_path / "x.npz"


def test_compress_inspect_and_export(source, tmp_path):
    document = printed("compress", source, "-o", tmp_path / "x.nzd", "--codec", "nearzip:12")
    assert document["samples"] == 40
    assert document["bytes"] == (tmp_path / "x.nzd").stat().st_size
    assert document["shares"]["uint8"] == pytest.approx(document["bytes"] / (40 * 16 * 16 * 3))
    shown = printed("inspect", tmp_path / "x.nzd", "--verify")
    assert (shown["samples"], shown["codec"]["name"], shown["damaged"]) == (40, "nearzip", [])
    assert printed("export", tmp_path / "x.nzd", "-o", tmp_path / "back.npz")["samples"] == 40
    assert np.load(tmp_path / "back.npz")["labels"].tolist() == (np.arange(40) % 4).tolist()
    assert "40 by nearzip:12" in run("compress", source, "-o", tmp_path / "y.nzd", "--codec", "nearzip:12").stdout


def test_damage_is_a_warning_and_an_exit_code(source, tmp_path):
    run("compress", source, "-o", tmp_path / "x.nzd", "--group", 10)
    data = bytearray((tmp_path / "x.nzd").read_bytes())
    data[40] ^= 1
    (tmp_path / "x.nzd").write_bytes(data)
    done = run("inspect", tmp_path / "x.nzd", "--verify")
    assert done.exit_code == 12
    assert "group 0 (samples 0 to 9) is damaged" in done.stderr
    assert run("inspect", tmp_path / "x.nzd").exit_code == 0


def test_what_fails_says_why_in_one_line(source, tmp_path):
    for arguments, code, said in (
        (("compress", source, "-o", "x.nzd", "--codec", "mp3"), 3, "no codec 'mp3'"),
        (("compress", "nothing", "-o", "x.nzd"), 10, "no such file"),
        (("compress", source, "-o", "x.npz"), 2, "is the input"),
        (("inspect", source), 12, "not a data set of nearzip"),
        (("export", "y.nzd", "-o", "-"), 2, "not to stdout"),
    ):
        done = run(*arguments)
        assert done.exit_code == code, done.output
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def module_with(path, name: str, code: str) -> None:
    (path / f"{name}.py").write_text(textwrap.dedent(code))


def test_tune_writes_a_plan_that_compress_applies(source, tmp_path):
    module_with(
        tmp_path,
        "judge_of_images",
        """
        import numpy as np
        images = np.load("x.npz")["images"]
        def evaluate(restored):
            return {"error": -float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(restored, images)]))}
        """,
    )
    document = printed("tune", source, "--evaluate", "judge_of_images:evaluate", "--max-loss", "error=3",
                       "--codec", "nearzip", "--codec", "jpeg,chroma=4:4:4", "-o", tmp_path / "plan.json")  # fmt: skip
    plan = datasets.Plan.load(tmp_path / "plan.json")
    assert document["plan"] == plan.to_json()
    assert plan.losses["error"] <= 3
    shown = run("tune", source, "--evaluate", "judge_of_images:evaluate", "--max-loss", "error=3", "--codec", "nearzip",
                "-o", "-")  # fmt: skip
    assert json.loads(shown.stdout)["format"] == "nearzip-dataset-plan"
    assert "bytes a sample" in shown.stderr
    written = printed("compress", source, "--plan", tmp_path / "plan.json", "-o", tmp_path / "x.nzd")
    assert written["bytes"] == plan.chosen.n_bytes


def test_select_writes_indices(source, tmp_path):
    module_with(
        tmp_path,
        "experiment_of_images",
        """
        import numpy as np
        def make(samples):
            y = np.asarray(samples.columns["label"])
            return {
                "train": lambda indices, seed, watch: indices,
                "predict": lambda indices: np.eye(4)[y] * 0.7 + 0.1,
                "evaluate": lambda indices: len(indices) / len(y),
            }
        """,
    )
    document = printed("select", source, "--experiment", "experiment_of_images:make", "--max-loss", 0.6,
                       "--share", 0.1, "--share", 0.5, "--seeds", 1, "-o", tmp_path / "kept.json")  # fmt: skip
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert document["kept"] == len(kept["indices"]) == 20
    assert {t["share"] for t in document["tried"]} == {0.1, 0.5}
