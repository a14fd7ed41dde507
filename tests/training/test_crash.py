"""kill -9 at any moment: a training goes on from the last committed version, and loses none that was committed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import pytest
import torch
from torch import optim

import nearzip as nz
from nearzip.torch import Saver
from tests.training.small import small_model, train

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    # A child does nothing but train and die.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

STEPS = 60


def training(folder, bound, version="latest", saves=True):
    """From a version to the end; the model's bytes, and the version that it began from."""
    model = small_model(0, width=64)
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    saver = Saver(folder / "run", bound=bound)
    resumed = saver.restore(model, optimizer, scheduler, version=version)
    for step in range(resumed.step + 1 if resumed else 1, STEPS + 1):
        train(model, optimizer, scheduler, 1)
        if saves and step < STEPS:
            saver.save(model, optimizer, scheduler, step)
    saver.close()
    values = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return values, None if resumed is None else resumed.version


def in_child(folder, work):
    """Run in a child process; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        values, version = work()
        (folder / "end").write_bytes(values)
        (folder / "began").write_text(str(version))
        code = 0
    finally:
        os._exit(code)


def crash_again_and_again(folder, kills, bound, seed):
    rng = random.Random(seed)
    store, committed = None, {}
    while kills:
        child = in_child(folder, lambda: training(folder, bound))
        time.sleep(rng.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills -= 1
        if (folder / "run" / "nearzip-store").exists():
            store = nz.Store(folder / "run")
            ids = {row.number: row.id for row in store.log()}
            assert committed.items() <= ids.items(), "a committed version is gone"
            committed = ids
    assert in_child_waited(folder, lambda: training(folder, bound)) == 0
    end, began = (folder / "end").read_bytes(), (folder / "began").read_text()
    if began != "None":
        version = int(began)
        assert in_child_waited(folder, lambda: training(folder, bound, version, saves=False)) == 0
        assert (folder / "end").read_bytes() == end, "a run from that version ends elsewhere"
    return end


def in_child_waited(folder, work):
    _, status = os.waitpid(in_child(folder, work), 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("bound", [None, nz.Absolute(1e-3)])
def test_five_crashes(tmp_path, bound):
    end = crash_again_and_again(tmp_path, 5, bound, 0)
    if bound is None:
        straight = tmp_path / "straight"
        straight.mkdir()
        assert in_child_waited(straight, lambda: training(straight, None)) == 0
        assert (straight / "end").read_bytes() == end, "crashes changed an exact training"


@pytest.mark.long
def test_a_hundred_crashes(tmp_path):
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        crash_again_and_again(folder, 10, nz.Absolute(1e-3) if seed % 2 else None, seed)
