"""`bench papers`: trainings that go on where they were stopped, chains that do, and what the tables are made of."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch

from experiments.lab.data import Dataset, Split
from experiments.papers.scale import chains, choosing, measure, training
from experiments.papers.scale.training import FROM_RESTORED, PLAIN, WAYS, Training

CPU = torch.device("cpu")
SMALL = Training("lenet-300-100", epochs=3, lr=0.05, batch=16)


@pytest.fixture
def digits() -> Dataset:
    """Two kinds of noise in MNIST's shape that a network tells apart in a few steps."""
    g = torch.Generator().manual_seed(0)
    targets = torch.arange(160) % 2
    inputs = torch.randn(160, 1, 28, 28, generator=g) + targets.view(-1, 1, 1, 1)
    return Dataset("mnist", Split(inputs[:96], targets[:96]), Split(inputs[:0], targets[:0]),
                   Split(inputs[96:], targets[96:]))  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_training_ends_like_one_that_was_not(tmp_path, digits, way):
    whole = replace(SMALL, way=way, saves="improved" if way == FROM_RESTORED else "all")
    rows = training.run(whole, digits, tmp_path / "whole", CPU)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    stopped = tmp_path / "stopped"
    training.run(replace(whole, epochs=2), digits, stopped, CPU)
    # The settings that the folder was made with, but for the length.
    document = json.loads((stopped / "rows.json").read_text())
    document["training"]["epochs"] = 3
    (stopped / "rows.json").write_text(json.dumps(document))
    assert training.run(whole, digits, stopped, CPU) == rows
    for row in rows:
        if "file" in row:
            assert (stopped / row["file"]).read_bytes() == (tmp_path / "whole" / row["file"]).read_bytes()


def test_other_settings_begin_anew(tmp_path, digits):
    training.run(replace(SMALL, epochs=1), digits, tmp_path, CPU)
    rows = training.run(replace(SMALL, epochs=1, lr=0.01), digits, tmp_path, CPU)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows


def test_going_on_from_what_is_restored_changes_the_network_within_theta(tmp_path, digits):
    settings = replace(SMALL, way=FROM_RESTORED, saves="improved", epochs=4)
    saved = [row for row in training.run(settings, digits, tmp_path, CPU) if "delta_dnn" in row]
    for row in saved:
        point = row["delta_dnn"]
        before = point["accuracy"] - point["accuracy_change"]
        assert point["eps"] in (1e-3, *choosing.CANDIDATES)
        assert point["eps"] == 1e-3 or -point["accuracy_change"] / before < 0.002


def test_chains_go_on_and_restore_what_their_bytes_say(tmp_path, digits):
    rows = training.run(SMALL, digits, tmp_path / "run", CPU)
    versions = [tmp_path / "run" / row["file"] for row in rows]
    score = training.scorer("lenet-300-100", digits)
    coding = chains.CODINGS["QD, 4-8 bits"]
    whole = chains.coded(versions, tmp_path / "a", "QD", coding, score)
    first = chains.coded(versions[:2], tmp_path / "b", "QD", coding, score)
    assert first == whole[:2]
    assert chains.coded(versions, tmp_path / "b", "QD", coding, score) == whole
    assert all(row["bytes"] < row["raw"] / 2 for row in whole)
    other = chains.coded(versions, tmp_path / "b", "QD", chains.SIXTEEN["QD, 16 bits"], score)
    assert other[0]["bytes"] > whole[0]["bytes"]
    # 16 bits restore the network nearly as it is.
    assert other[-1]["accuracy"] == pytest.approx(rows[-1]["accuracy"], abs=0.02)


def test_algorithm_1_chains_keep_theta_or_take_the_fallback(tmp_path, digits):
    rows = training.run(SMALL, digits, tmp_path / "run", CPU)
    versions = [tmp_path / "run" / row["file"] for row in rows]
    chain = chains.chosen(versions, tmp_path / "c", "Δ-DNN relative", training.scorer("lenet-300-100", digits))
    assert chain[0]["bytes"] == chain[0]["raw"]
    assert chain[0]["accuracy"] == rows[0]["accuracy"]
    for row in chain[1:]:
        assert row["eps"] == 1e-3 or -row["change"] / (row["accuracy"] - row["change"]) < 0.002
    sizes = chains.lossless(versions)
    assert sizes.keys() == {"LZMA", "Zstd"}
    assert all(0.5 * row["raw"] < n < row["raw"] for n, row in zip(sizes["LZMA"], chain, strict=True))


def test_the_papers_settings():
    paper = measure.SCALES["paper"]
    assert (paper.qd_training.weight_decay, paper.delta_training.weight_decay) == (5e-4, 1e-4)
    assert {(t.lr, t.epochs, t.way) for t in (paper.qd_training, paper.delta_training)} == {(0.01, 200, PLAIN)}
    assert paper.delta_training.saves == "improved"


def test_two_processes_do_not_share_a_folder(tmp_path):
    with (
        measure._alone(tmp_path),
        pytest.raises(SystemExit, match="another process works in"),
        measure._alone(tmp_path),
    ):
        pass
    with measure._alone(tmp_path):
        pass


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("NEARZIP_DATA"), reason="needs the data sets: set NEARZIP_DATA")
def test_the_tiny_scale_fills_every_table_and_goes_on(tmp_path):
    arguments = ["--tiny", "--device", "cpu", "--folder", str(tmp_path / "kept"), "--output", str(tmp_path)]
    measure.main([*arguments, "--seconds", "0"])
    measure.main([*arguments, "--table", "qd-5", "--networks", "lenet-300-100"])
    measure.main(arguments)
    tables = json.loads((tmp_path / "papers_tiny.json").read_text())["tables"]
    for network in measure.SCALES["tiny"].qd:
        assert set(tables["qd"][network]["chains"]) == {*chains.CODINGS, *chains.SIXTEEN}
        assert len(tables["qd"][network]["accuracy"][PLAIN]) == 2
    for network in measure.SCALES["tiny"].delta:
        row = tables["delta"][network]
        assert set(row["chains"]) == set(chains.CHOSEN)
        assert set(row["trainings"]) == {PLAIN, FROM_RESTORED}
        assert np.isfinite([one["accuracy"] for one in row["trainings"][FROM_RESTORED]]).all()
