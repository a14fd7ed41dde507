"""nearzip demo: real training, real files, another process."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from idx import write_mnist

from nearzip import demo
from nearzip.cli import cli
from nearzip.errors import BoundError, CorruptError

rng = np.random.default_rng(5)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Noise in the shape of MNIST, one image for each digit and more."""
    return write_mnist(tmp_path / "data", rng, 200, 50)


def test_the_demo_keeps_its_bound_and_its_accuracy(tmp_path: Path):
    output = tmp_path / "out"
    result = CliRunner().invoke(cli, ["demo", "--epochs", "3", "--output", str(output), "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["message_type"] == "summary"
    assert {key: value for key, value in document.items() if key not in ("message_type", "command")} == json.loads(
        (output / "demo.json").read_text()
    )
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert document["accuracy"][-1] > 0.8
    for method in document["methods"]:
        assert method["worst_error"] <= method["bound"]
        assert abs(method["accuracy"][-1] - document["accuracy"][-1]) < 0.01
        files = sorted((output / method["label"].replace(" ", "-")).glob("epoch-*.nz"))
        assert method["n_bytes"] == [path.stat().st_size for path in files]
    ratios = {method["label"]: method["ratio"] for method in document["methods"]}
    assert ratios["nearzip"] > 4 * ratios["zstd"]
    again = CliRunner().invoke(cli, ["demo", "--epochs", "2", "--output", str(output)])
    assert again.exit_code == 2
    assert "demo.png" in again.stderr
    assert "--force" in again.stderr


def test_the_table_fits_a_terminal_and_names_every_method(mnist: Path, tmp_path: Path):
    result = CliRunner().invoke(cli, ["demo", "--epochs", "2", "--data", str(mnist), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "784-300-100-10, 266,610 parameters" in result.stdout
    for label in ("nearzip lossless", "delta-dnn", "lzma", "zstd", "error/bound"):
        assert label in result.stdout


@pytest.mark.parametrize(
    "content", [b"", b"noise", gzip.compress(b"\0\0\x08\x01\0\0\0\x09short"), gzip.compress(b"\0")]
)
def test_damaged_data_is_named(mnist: Path, tmp_path: Path, content: bytes):
    (mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(CorruptError, match=r"t10k-labels-idx1-ubyte\.gz"):
        demo.run_demo(tmp_path / "out", mnist, 2)


def test_the_demo_notices_a_missed_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loose = demo._Contender("nearzip", "nearzip", demo.Absolute(1e-3))
    monkeypatch.setattr(demo, "_CONTENDERS", (loose,))
    monkeypatch.setattr(
        demo, "compress_quietly", lambda new, held, method, bound: real(new, held, method, demo.Absolute(0.1))
    )
    with pytest.raises(BoundError, match="exceeds the bound"):
        demo.run_demo(tmp_path / "out", epochs=2)


real = demo.compress_quietly
