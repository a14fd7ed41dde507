"""nearzip tune and compress --plan: what they print, where, and how they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip.cli import cli

rng = np.random.default_rng(5)
OLD = {"w": rng.normal(0, 0.1, (64, 48)).astype(np.float32), "b": np.zeros(64, np.float32)}
NEW = {name: (value + rng.normal(0, 0.002, value.shape)).astype(np.float32) for name, value in OLD.items()}

JUDGE = """
import numpy as np
from safetensors.numpy import load_file

new = load_file("new.safetensors")
calls = 0

def error(tensors):
    return -float(sum(np.abs(tensors[name] - new[name]).mean() for name in new))

def two(tensors):
    return {"error": error(tensors), "worst": -max(float(np.abs(tensors[n] - new[n]).max()) for n in new)}

def restless(tensors):
    global calls
    calls += 1
    return error(tensors) - calls * 1e-9

def raises(tensors):
    raise KeyError("layer9")

NUMBER = 3

from nearzip.budget import Evaluation
from nearzip.budget.intervals import Mean

class Right:
    # 3000 samples, of which two change as soon as anything does.
    name, identity, confidence = "right", "", None

    def evaluation(self, tensors):
        same = np.ones(3000)
        same[: 0 if np.array_equal(tensors["w"], new["w"]) else 2] = 0
        return Evaluation({"same": same.mean()}, {"same": Mean(same, np.ones(3000))})

right = Right()
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with old.safetensors, new.safetensors and judge.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    save_file(OLD, "old.safetensors")
    save_file(NEW, "new.safetensors")
    Path("judge.py").write_text(JUDGE)
    Path("broken.py").write_text("1 / 0")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def tune(*arguments: str, evaluate: str = "judge:error", max_loss: str = "0.01") -> Result:
    return run("tune", "new.safetensors", "--evaluate", evaluate, "--max-loss", max_loss, "-o", "plan.json", *arguments)


@pytest.mark.parametrize("base", [(), ("--base", "old.safetensors")], ids=["alone", "update"])
def test_a_plan_is_found_and_applied(files, base):
    result = tune(*base)
    assert result.exit_code == 0, result.stderr
    assert "chosen" in result.stdout
    assert "measured on the stored archive; at most score 0.01" in result.stdout
    assert result.stderr == ""
    plan = nz.Plan.load("plan.json")
    result = run("compress", "new.safetensors", *base, "--plan", "plan.json", "-o", "a.nz")
    # What this evaluator asks for is kept although the whole update is lost, which is worth a warning.
    assert result.exit_code == (1 if base else 0), result.stderr
    assert ("the update is lost" in result.stderr) == bool(base)
    assert Path("a.nz").stat().st_size == plan.nbytes
    assert run("decompress", "a.nz", *base, "-o", "r.safetensors").exit_code == 0
    restored = load_file("r.safetensors")
    assert sum(np.abs(restored[name] - NEW[name]).mean() for name in NEW) <= 0.01


def test_a_base_whose_tensors_are_called_otherwise(files):
    save_file({"old.w": OLD["w"], "b": OLD["b"], "other": OLD["w"] * 0}, "old.safetensors")
    rename = ("--base", "old.safetensors", "--rename", "old.=")
    assert tune(*rename).exit_code == 0
    # What this evaluator asks for is kept although the whole update is lost.
    assert run("compress", "new.safetensors", *rename, "--plan", "plan.json", "-o", "a.nz").exit_code == 1
    assert Path("a.nz").stat().st_size == nz.Plan.load("plan.json").nbytes
    assert "write OLD=NEW" in tune("--base", "old.safetensors", "--rename", "old", "--force").stderr


def test_json_on_stdout_and_a_status_line_for_every_trial(files):
    result = tune("--json", "--max-loss", "error=0.02", evaluate="judge:two", max_loss="worst=0.05")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["message_type"], document["command"], document["output"]) == ("summary", "tune", "plan.json")
    assert document["plan"] == json.loads(Path("plan.json").read_text())
    assert document["plan"]["max_loss"] == {"error": 0.02, "worst": 0.05}
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["trials_done"] for line in lines] == list(range(1, len(document["plan"]["trials"]) + 1))
    assert lines[-1]["best"]["bytes"] == document["plan"]["bytes"]


def test_the_methods_and_the_searches(files):
    for arguments in (
        ("--method", "delta-dnn", "--set", "backend=zstd", "--knob", "pwrel"),
        ("--strategy", "deepsz"),
        ("--strategy", "delta-dnn", "--base", "old.safetensors"),
        ("--method", "lc-checkpoint", "--base", "old.safetensors", "--evaluations", "3"),
    ):
        result = tune("--force", *arguments)
        assert result.exit_code == 0, (arguments, result.stderr)


def test_parameters_of_the_searches(files):
    assert tune("--strategy", "delta-dnn", "--strategy-set", "candidates=0.002,0.01",
                "--strategy-set", "alpha=0.25", "--strategy-set", "beta=0.75").exit_code == 0  # fmt: skip
    plan = nz.Plan.load("plan.json")
    assert [trial.codings.default.bound.value for trial in plan.trials] == [0.002, 0.01]
    assert (plan.strategy["alpha"], plan.strategy["candidates"]) == (0.25, [0.002, 0.01])
    assert tune("--force", "--strategy", "deepsz", "--strategy-set", "starts=0.01,0.1", "--strategy-set",
                "most_tests=4", "--strategy-set", "distortion=0.002").exit_code == 0  # fmt: skip
    plan = nz.Plan.load("plan.json")
    assert (plan.strategy["starts"], plan.strategy["most_tests"], plan.strategy["distortion"]) == (
        [0.01, 0.1],
        4,
        0.002,
    )


def test_the_best_accuracy_of_a_given_size(files):
    small = ("tune", "new.safetensors", "--evaluate", "judge:error", "--strategy", "deepsz", "-o", "plan.json")
    result = run(*small, "--strategy-set", "max_bytes=4000")
    assert result.exit_code == 0, result.stderr
    assert "measured on the stored archive\n" in result.stdout
    assert nz.Plan.load("plan.json").nbytes <= 4000
    assert run("compress", "new.safetensors", "--plan", "plan.json", "-o", "a.nz").exit_code == 0
    assert Path("a.nz").stat().st_size <= 4000
    result = run(*small, "--force", "--strategy-set", "max_bytes=100")
    assert result.exit_code == 15
    assert "the smallest reached takes" in result.stderr
    result = run(*small, "--force")
    assert result.exit_code == 2
    assert "--max-loss is missing" in result.stderr


def test_the_table_names_the_layer_that_a_trial_is_about(files):
    rows = [line for line in tune("--strategy", "deepsz").stdout.splitlines() if "nearzip lossless and" in line]
    assert all("'w' nearzip abs:" in row for row in rows)


def test_a_plan_that_another_release_measured_warns(files):
    assert tune().exit_code == 0
    text = Path("plan.json").read_text()
    Path("plan.json").write_text(text.replace(nz.Plan.load("plan.json").chosen.restored_id, "0" * 32))
    result = run("compress", "new.safetensors", "--plan", "plan.json", "-o", "a.nz")
    assert result.exit_code == 1
    assert "warning: the plan was measured by another release" in result.stderr
    assert Path("a.nz").exists()


def test_trials_are_filed(files):
    assert tune("--trials", "trials").exit_code == 0
    n = len(list(Path("trials").iterdir()))
    assert n == len(nz.Plan.load("plan.json").trials) + 1
    assert tune("--trials", "trials", "--force").exit_code == 0
    assert len(list(Path("trials").iterdir())) == n


def test_jobs_need_joblib(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    result = tune("--jobs", "2")
    assert result.exit_code == 3
    assert "pip install 'nearzip[tune]'" in result.stderr


def test_warnings_end_with_exit_code_1(files):
    result = tune(evaluate="judge:restless")
    assert result.exit_code == 1
    assert "warning: evaluate is not deterministic" in result.stderr
    result = run("compress", "old.safetensors", "--plan", "plan.json", "-o", "a.nz")
    assert result.exit_code == 1
    assert "warning: the plan was made for the network" in result.stderr
    assert Path("a.nz").exists()


@pytest.mark.parametrize(
    ("code", "says", "arguments", "changes"),
    [
        (2, "takes PACKAGE.MODULE:FUNCTION", (), {"evaluate": "judge"}),
        (2, "No module named 'nope'", (), {"evaluate": "nope:error"}),
        (2, "has no attribute 'nope'", (), {"evaluate": "judge:nope"}),
        (2, "is a int, not a function", (), {"evaluate": "judge:NUMBER"}),
        (2, "importing it raised ZeroDivisionError", (), {"evaluate": "broken:error"}),
        (3, "evaluate raised KeyError on the original network: 'layer9'", (), {"evaluate": "judge:raises"}),
        (2, "takes a number or a share such as 0.2%, not 'x'", (), {"max_loss": "x"}),
        (2, "takes a number or a share such as 0.2%, not 'x'", (), {"max_loss": "score=x"}),
        (2, "NAME=X once for each metric", ("--max-loss", "0.3"), {}),
        (2, "NAME=X once for each metric", ("--max-loss", "a=0.3"), {"max_loss": "a=0.1"}),
        (2, "no metric 'top1'; it returns score", (), {"max_loss": "top1=0.1"}),
        (2, "a number from 0 on", (), {"max_loss": "-1"}),
        (2, "a number from 0 on", (), {"max_loss": "nan"}),
        (2, "no knob 'size'", ("--knob", "size"), {}),
        (2, "'nearzip' has no parameter 'starts'; it takes none", ("--strategy-set", "starts=1"), {}),
        (2, "no parameter 'size'; it takes starts", ("--strategy", "deepsz", "--strategy-set", "size=1"), {}),
        (2, "starts takes numbers with commas between, not '0.1;1'",
         ("--strategy", "deepsz", "--strategy-set", "starts=0.1;1"), {}),
        (2, "starts takes numbers", ("--strategy", "deepsz", "--strategy-set", "starts="), {}),
        (2, "max_bytes takes a whole number, not '1.5'",
         ("--strategy", "deepsz", "--strategy-set", "max_bytes=1.5"), {}),
        (2, "alpha takes a number, not 'x'", ("--strategy", "delta-dnn", "--strategy-set", "alpha=x"), {}),
        (2, "--strategy-set takes KEY=VALUE", ("--strategy", "deepsz", "--strategy-set", "starts"), {}),
        (2, "--strategy-set alpha is given twice",
         ("--strategy", "delta-dnn", "--strategy-set", "alpha=1", "--strategy-set", "alpha=1"), {}),
        (2, "evaluations limits the strategy 'nearzip'", ("--strategy", "deepsz", "--evaluations", "3"), {}),
        (15, "within the budget", ("--method", "delta-dnn"), {"max_loss": "0"}),
        (10, "no such file", ("--base", "gone.safetensors"), {}),
        (2, "is a file; trials need a folder", ("--trials", "judge.py"), {}),
    ],
)  # fmt: skip
def test_failures_are_one_line_and_write_nothing(files, code, says, arguments, changes):
    result = tune(*arguments, **changes)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("plan.json").exists()


def test_plans_are_not_overwritten_and_not_mixed_with_settings(files):
    assert tune().exit_code == 0
    before = Path("plan.json").read_bytes()
    result = tune()
    assert (result.exit_code, Path("plan.json").read_bytes()) == (2, before)
    for extra in (("--bound", "abs:1"), ("--method", "zstd"), ("--set", "level=3")):
        result = run("compress", "new.safetensors", "--plan", "plan.json", "-o", "a.nz", *extra)
        assert result.exit_code == 2
        assert "a plan says method, bounds and options" in result.stderr
    Path("plan.json").write_text("{}")
    result = run("compress", "new.safetensors", "--plan", "plan.json", "-o", "a.nz")
    assert (result.exit_code, Path("a.nz").exists()) == (12, False)
    assert "plan.json: is not a plan" in result.stderr


def test_a_share_of_the_originals_score_and_a_pattern(files):
    result = tune("--json", "--max-loss", "e*=0.02", evaluate="judge:right", max_loss="*=0.2%")
    assert result.exit_code == 2
    assert "no metric 'e*'" in result.stderr
    result = tune("--json", evaluate="judge:right", max_loss="same=0.2%")
    assert result.exit_code == 0, result.stderr
    assert nz.Plan.load("plan.json").max_loss == {"same": 0.002}


def test_confidence_is_carried_by_plan_table_and_exit_code(files):
    result = tune("--confidence", "0.95", evaluate="judge:right", max_loss="0.002")
    assert result.exit_code == 0, result.stderr
    assert "with 95 % confidence: same at most 0.00" in result.stdout
    assert "(3000 samples)" in result.stdout
    plan = nz.Plan.load("plan.json")
    assert plan.verdicts == {"same": "kept"}
    Path("plan.json").unlink()
    result = tune("--confidence", "0.95", "--method", "delta-dnn", evaluate="judge:right", max_loss="0.001")
    assert result.exit_code == 1
    assert "samples would show" in result.stderr
    assert not Path("plan.json").exists()
    assert tune("--confidence", "1", evaluate="judge:right").exit_code == 2
