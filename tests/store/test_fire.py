"""A store whose processes are killed at random, for some seconds; `scripts/bench store_fire` does it for an hour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.claims.store import store_fire


@pytest.mark.parametrize("kind", ["disk", pytest.param("s3", marks=pytest.mark.long)])
def test_a_store_under_fire(kind, request):
    if kind == "s3":
        pytest.importorskip("s3fs")
        pytest.importorskip("moto")
    seconds = 120 if request.config.getoption("--long") else 10
    # In a process of its own: it forks, and this one has threads.
    command = [
        sys.executable,
        "-m",
        "experiments",
        "store_fire",
        "--on",
        kind,
        "--seconds",
        str(seconds),
        "--seed",
        "3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(store_fire.__file__).parents[3]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)
    assert found["wrong"] == []
    assert found["commits"] > 0
    assert found["kills"] > 3


def test_the_judge_sees_what_is_wrong(tmp_path):
    """An oracle that finds nothing proves nothing: a version dropped against the rules, wrong values, false damage."""
    (tmp_path / "scratch").mkdir()
    place = store_fire.Place(str(tmp_path / "store"), None, tmp_path / "scratch")
    store_fire._make(place)
    diary = store_fire.Diary(place, "writer")
    store = place.open()
    for i in range(1, 12):
        diary.note("begun", who=1, i=i)
        wanted = store_fire.tensors(1, i)
        number = store.commit(wanted, tags=["t"] if i == 2 else [])
        diary.note("committed", number=number, who=1, i=i, tagged=i == 2)
    assert store_fire._judge(place)["wrong"] == []
    store.prune("all", drop=[2, 10])
    diary.note("read", number=3, digest="a", right=False, who=[1, 3])
    diary.note("read", number=3, digest="b", right=True, who=[1, 3])
    diary.note("damage", role="reader", began=0.0, error="false")
    diary.note("unnamed", role="reader", began=0.0, error="KeyError")
    diary.note("begun", who=2, i=0)
    diary.note("committed", number=5, who=2, i=0, tagged=False)
    diary.note("committed", number=99, who=2, i=0, tagged=False)
    wrong = " ".join(store_fire._judge(place)["wrong"])
    for text in (
        "version 2 was dropped against", "version 10 was dropped against", "wrong values", "other bits than before",
        "damage: reader", "unnamed: reader", "version 5 is another's", "version 99 is gone",
    ):  # fmt: skip
        assert text in wrong, text
