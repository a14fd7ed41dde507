"""Every committed fuzz input through today's decoders: an answer or a named error, never anything else."""

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import targets  # noqa: E402

CORPUS = sorted((FUZZ / "corpus").glob("*/*"))


@pytest.mark.parametrize("name", [*targets.NATIVE, *targets.PYTHON])
def test_corpus_is_read_without_findings(name: str) -> None:
    target = (targets.NATIVE | targets.PYTHON)[name]
    inputs = [path for path in CORPUS if path.parent.name == name]
    assert inputs, f"no corpus for {name}"
    for path in inputs:
        target(path.read_bytes())


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


def test_good_archives_of_the_targets_read_back() -> None:
    for archive, base in targets.seeds():
        assert targets.nz.decompress(archive, base=base)
