"""What is made of measured points for the papers' tables: Algorithm 1's choice, pages from results."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from experiments import delta_dnn
from experiments.record import RESULTS


def _point(eps: float, ratio: float, change: float) -> dict[str, float]:
    return {"eps": eps, "ratio": ratio, "accuracy_change": change}


def test_algorithm_1_takes_the_best_score_below_theta():
    fallback = _point(0.001, 2.0, 0.0)
    points = [_point(0.01, 5.0, 0.0), _point(0.05, 8.0, -0.001), _point(0.1, 20.0, -0.003)]
    assert delta_dnn.choose(points, fallback)["eps"] == 0.05


def test_algorithm_1_lets_gains_pass_and_falls_back():
    fallback = _point(0.001, 2.0, 0.0)
    assert delta_dnn.choose([_point(0.01, 5.0, 0.0), _point(0.1, 5.0, 0.0042)], fallback)["eps"] == 0.1
    assert delta_dnn.choose([_point(0.01, 50.0, -0.01)], fallback) is fallback


def test_sz_on_raw_floats_keeps_a_relative_bound():
    pytest.importorskip("pysz")
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(0, 0.1, (40, 50)).astype(np.float32), "n": np.array([3], np.int64)}
    weights["a"][0, :3] = 0
    n_bytes, restored = delta_dnn.sz_pointwise(weights, 0.05)
    assert 0 < n_bytes < weights["a"].nbytes / 2
    assert restored["n"] is weights["n"]
    assert np.all(restored["a"][0, :3] == 0)
    # Logarithms in float32 add a little to the bound.
    assert np.all(np.abs(restored["a"] - weights["a"]) <= 0.0501 * np.abs(weights["a"]))


def test_improved_epochs_follow_each_other(tmp_path):
    rows = [(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.8)]
    versions = [{"file": f"{e:03d}.safetensors", "epoch": e, "test": {"accuracy": a}} for e, a in rows]
    (tmp_path / "trace.json").write_text(json.dumps({"versions": versions}))
    found = [(old.stem, new.stem, epoch) for old, new, epoch in delta_dnn.improved(tmp_path)]
    assert found == [("001", "002", 2), ("002", "004", 4)]


@pytest.mark.skipif(not (RESULTS / "delta_dnn.json").is_file(), reason="not measured yet")
def test_the_page_is_what_the_result_says(monkeypatch, tmp_path):
    from experiments import delta_dnn_page

    monkeypatch.setattr(delta_dnn_page, "_IMAGES", tmp_path)
    text = delta_dnn_page.page(json.loads((RESULTS / "delta_dnn.json").read_text()))
    assert text == (RESULTS.parent.parent / "docs" / "papers" / "delta-dnn.md").read_text()
