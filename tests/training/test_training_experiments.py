"""What is measured of resuming, on noise in the shape of MNIST: every part runs, and the figures fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments import feedback, resume, training_page
from experiments.data import Dataset, Split


@pytest.fixture(scope="module")
def noise():
    generator = torch.Generator().manual_seed(0)

    def split(n):
        x = torch.randn(n, 1, 28, 28, generator=generator)
        return Split(x, (x[:, 0, :10, 0].argmax(dim=1)).long())

    return Dataset("mnist", split(512), split(64), split(128))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume(noise, optimizer):
    case = resume.Case("lenet-300-100", optimizer, 1e-3, 6, 20, 2, 2, batch=64, epochs=1)
    result = resume.measure(case, noise, seeds=2, seconds=1e9)
    assert result["parameters"] == 266_610
    sizes = [row["bytes"]["whole"] for row in result["rows"]]
    assert max(sizes) < result["exact"]
    assert sizes[0] > sizes[len(resume.LEVELS) - 1]
    for row in result["rows"]:
        assert row["bytes"]["whole"] >= row["bytes"]["weights"] + row["bytes"]["optimizer"]
        assert row["original"] == result["rows"][0]["original"]
    text = training_page.resume({"cases": {"x": result}, **CIRCUMSTANCES})
    assert text.count("\n| rms:") == len(resume.LEVELS)


CIRCUMSTANCES = {
    "machine": {"cpu": "a", "cores": 1, "python": "3"}, "commit": "c", "date": "d", "versions": {"numpy": "2"},
}  # fmt: skip


def test_feedback(noise):
    setting = replace(feedback.SETTINGS["lenet-300-100"], epochs=1, batch=64, images=None)
    network = {
        "setting": vars(setting),
        "accuracy": feedback.tables_3_and_6(setting, noise, 1),
        "recovery": feedback.table_9(setting, noise, most=1),
        "seconds": feedback.table_10(setting, noise),
    }
    assert network["accuracy"]["8 bits, M"]["seconds_quantizing"][0] > 0
    assert set(network["recovery"]) == set(feedback.METHODS)
    text = training_page.feedback({"networks": {"lenet-300-100": network}, **CIRCUMSTANCES})
    for title in ("Table 3", "Table 6", "Figure 11", "Table 9", "Table 10"):
        assert title in text
