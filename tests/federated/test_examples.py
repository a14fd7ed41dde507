"""The example of docs/federated-flower.md runs, and gives the figures that the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(FedAvg|nearzip): accuracy (0\.\d+), ([\d,]+) bytes up$", re.MULTILINE)


def figures(text):
    return {label: (float(accuracy), int(n.replace(",", ""))) for label, accuracy, n in LINE.findall(text)}


def test_the_flower_example_gives_the_figures_of_the_page():
    pytest.importorskip("flwr.serverapp.strategy", reason="needs the extra flower")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    done = subprocess.run(
        [sys.executable, "local.py"], cwd=ROOT / "examples" / "flower", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, shown = figures(done.stdout), figures((ROOT / "docs" / "federated-flower.md").read_text())
    assert set(found) == set(shown) == {"FedAvg", "nearzip"}
    for label, (accuracy, n_bytes) in found.items():
        # Sums of floats differ between machines; the figures do not, but for a few samples and bytes.
        assert abs(accuracy - shown[label][0]) < 0.02
        assert abs(n_bytes / shown[label][1] - 1) < 0.05
    assert found["nearzip"][1] * 25 < found["FedAvg"][1]


def test_five_lines_of_the_app_change():
    lines = "".join((ROOT / "examples" / "flower" / name).read_text() for name in ("client_app.py", "server_app.py"))
    assert lines.count("# nearzip\n") == 5


def test_the_nvflare_example_sends_a_tenth():
    pytest.importorskip("nvflare.apis.dxo_filter", reason="needs the extra nvflare")
    done = subprocess.run(
        [sys.executable, "local.py"], cwd=ROOT / "examples" / "nvflare", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"accuracy (0\.\d+), ([\d,]+) bytes", done.stdout)
    (plain, n_plain), (compressed, n_compressed) = ((float(a), int(n.replace(",", ""))) for a, n in found)
    assert compressed > plain - 0.02
    assert n_compressed * 10 < n_plain
