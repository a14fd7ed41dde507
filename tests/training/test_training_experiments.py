"""What is measured of resuming, on noise in the shape of MNIST: every part runs, and the figures fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.claims.resume import cases, resume, save_cost, save_memory, sizes
from experiments.docs import resume as resume_page
from experiments.docs.papers import feedback as feedback_page
from experiments.docs.pictures import qd as qd_pictures
from experiments.lab.data import Dataset, Split
from experiments.papers.qd import feedback


@pytest.fixture(scope="module")
def noise():
    generator = torch.Generator().manual_seed(0)

    def split(n):
        x = torch.randn(n, 1, 28, 28, generator=generator)
        return Split(x, (x[:, 0, :10, 0].argmax(dim=1)).long())

    return Dataset("mnist", split(512), split(64), split(128))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARZIP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume(noise, optimizer, monkeypatch):
    monkeypatch.setattr(sizes, "ZSTD_LEVEL", 1)
    monkeypatch.setitem(resume.LEVELS, optimizer, resume.LEVELS[optimizer][::4])
    case = cases.Case("lenet-300-100", optimizer, 1e-3, 6, 20, 2, 2, batch=64)
    result, written = {}, []
    assert not resume.measure(case, noise, 2, result, lambda: written.append(1), deadline=0)
    assert len(written) == len(result["rows"]) == 1
    begun = result["rows"][0]
    assert resume.measure(case, noise, 2, result, lambda: written.append(1))
    assert result["rows"][0] is begun
    assert len(written) == len(result["rows"]) == len(resume.trials(case))
    assert result["parameters"] == 266_610
    n_bytes = [row["bytes"]["whole"] for row in result["rows"]]
    assert max(n_bytes) < result["sizes"]["exact"]["whole"]
    assert n_bytes[0] > n_bytes[len(resume.LEVELS[optimizer]) - 1]
    for row in result["rows"]:
        assert row["bytes"]["whole"] >= row["bytes"]["weights"] + row["bytes"]["optimizer"]
        assert row["original"] == result["rows"][0]["original"]
    text = resume_page.context({"cases": {"x": result}, **CIRCUMSTANCES}, {"networks": {}, **CIRCUMSTANCES})["details"]
    assert text.count("\n| rms:") == len(resume.LEVELS[optimizer])
    assert resume.fresh(result, case, 2) is result
    assert resume.fresh(result, case, 3) == {}


def test_excp_keeps_moments_where_weights_move(noise, monkeypatch):
    monkeypatch.setattr(sizes, "ZSTD_LEVEL", 1)
    case = cases.Case("lenet-300-100", "adamw", 1e-3, 6, 20, 2, 2, batch=64)
    chain = cases.to_crash(case, noise)
    restored, n_bytes = sizes.excp_like(chain, 1.0)
    assert set(restored.tensors) == set(chain[-1].tensors)
    name = "1.weight"
    first, second = (restored.tensors[f"optimizer/{name}/{key}"] for key in ("exp_avg", "exp_avg_sq"))
    assert len(np.unique(first)) <= 16
    assert (second >= 0).all()
    assert 0.01 < np.count_nonzero(first) / first.size < 0.5
    assert n_bytes["whole"] < sizes.exact_bytes(chain[-1])["exact"]["whole"] / 8


def test_the_coarsest_level_is_one_that_all_finer_ones_lead_to():
    rows = [{"equivalent": same} for same in (True, True, False, True)]
    assert resume_page.smallest(rows) is rows[1]
    assert resume_page.smallest(rows[2:]) is None


CIRCUMSTANCES = {
    "machine": {"cpu": "a", "cores": 1, "python": "3"}, "commit": "c", "date": "d", "versions": {"numpy": "2"},
}  # fmt: skip


def test_feedback(noise):
    setting = feedback.Setting("lenet-300-100", epochs=4, batch=128, images=256)
    result, written = {}, []
    assert not feedback.measure(setting, noise, 1, result, lambda: written.append(1), deadline=0)
    assert not written
    assert feedback.measure(setting, noise, 1, result, lambda: written.append(1))
    assert len(written) == len(feedback.WAYS) + 1
    assert set(result["recovery"]) == set(feedback.METHODS)
    assert set(result["recovery"]["nearzip"]) == {"1-1", "2-2", "3-3", "4-4", "1-2", "3-4"}
    assert len(result["recovery"]["nearzip"]["1-2"]["bytes"]) == 2
    measured = {"networks": {"lenet-300-100": result}, **CIRCUMSTANCES}
    found = feedback_page.context(measured, {"networks": {}, **CIRCUMSTANCES})
    for name in ("table_3", "table_6", "figure_11"):
        assert "lenet-300-100" in found[name]
    assert len(qd_pictures.draw_accuracy(measured).axes) == 1


def test_phases_are_quarters_and_halves():
    assert feedback.periods(8) == [(1, 2), (3, 4), (5, 6), (7, 8), (1, 4), (5, 8)]
    assert feedback.periods(200)[-2:] == [(1, 100), (101, 200)]
    assert feedback.periods(1) == [(1, 1)]


def test_time_of_the_parts(noise):
    found = feedback.measure_times(feedback.Setting("lenet-300-100", batch=64, images=None), noise)
    assert {"Training", "Store", "Quan", "LZMA Comp.", "LZMA Decomp.", "Restore"} <= set(found)
    assert found["LZMA Comp."] > 0
    assert found["LZMA Decomp."] > 0


def test_cost_of_a_save():
    found = save_cost.measure(save_cost.linear(2, 4, 64), 2, 2)
    assert found["parameters"] == 2 * 64**2
    assert found["tensors"] == 6
    assert found["snapshot_bytes"] >= 12 * found["parameters"]
    assert found["blocked"] > 0
    text = resume_page.cost({"networks": {"x": found}, **CIRCUMSTANCES})
    assert "\n| x | 0.0 M | 0.1 | 6 |" in text


def test_memory_of_a_save():
    row = save_memory.measure(1, "rms:0.05")
    assert row["parameters"] == 1 << 20
    assert row["snapshot"] >= 12 << 20
    assert row["beyond"] == max(row[n] for n in ("first", "second", "third")) - row["before"] - row["snapshot"]
    text = resume_page.memory({"bound": "rms:0.05", "rows": [row], **CIRCUMSTANCES})
    assert "\n| 1 M | 13 | 13 |" in text
