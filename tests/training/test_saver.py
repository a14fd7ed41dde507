"""Saving behind the training's back: nothing is lost, nothing fails silently."""

from __future__ import annotations

import functools
import gc
import math
import os
import random
import resource
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn, optim

import nearzip as nz
from nearzip import errors
from nearzip.torch import ErrorFeedback, Moments, Saver
from nearzip.torch.background import Background
from tests.training.small import small_model, train


def a_training(seed=0):
    model = small_model(seed)
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_save_crash_resume_bit_for_bit(tmp_path):
    model, optimizer, scheduler = a_training()
    with Saver(tmp_path / "run", every=2) as saver:
        assert saver.restore(model, optimizer, scheduler) is None
        for step in range(1, 8):
            train(model, optimizer, scheduler, 1)
            assert saver.save(model, optimizer, scheduler, step, {"loss": 1 / step}, loader=step) == (step % 2 == 0)
    assert saver.report.n_saves == 3
    assert saver.report.last_version == 2
    assert saver.report.n_bytes > 0
    other, other_optimizer, other_scheduler = a_training(1)
    restored = Saver(tmp_path / "run").restore(other, other_optimizer, other_scheduler)
    assert (restored.step, restored.version, restored.loader) == (6, 2, 6)
    assert restored.metrics == {"loss": 1 / 6}
    train(other, other_optimizer, other_scheduler, 1)
    assert equal(model, other)


def test_the_training_may_go_on_while_it_is_saved(tmp_path):
    model, optimizer, scheduler = a_training()
    saver = Saver(tmp_path / "run")
    saver.save(model, optimizer, scheduler, 1)
    at_the_time = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    saver.close()
    for name, array in nz.Store(tmp_path / "run").checkout().items():
        if name.startswith("model/"):
            assert torch.equal(torch.as_tensor(array), at_the_time[name.removeprefix("model/")])


@pytest.mark.parametrize("bound", [nz.Absolute(1e-2), "rms:0.1", nz.PointwiseRelative(0.01)])
def test_bounds_hold_through_a_chain_and_small_tensors_have_finer_ones(tmp_path, bound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))
    optimizer = optim.Adam(model.parameters(), 1e-2)
    with Saver(tmp_path / "run", bound=bound) as saver:
        for step in range(6):
            loss = model(torch.randn(32, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            saver.save(model, optimizer, step=step)
    got = saver.store.checkout()
    bound = nz.bounds.parse_bound(bound) if isinstance(bound, str) else bound
    for name, value in model.state_dict().items():
        x, y = value.double(), torch.as_tensor(got[f"model/{name}"]).double()
        if name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            assert torch.equal(x, y), name
            continue
        size = {"abs": torch.ones(()), "rms": x.square().mean().sqrt(), "pwrel": x.abs()}[bound.key]
        share = 1 if value.dim() > 1 else 1 / 8
        assert ((x - y).abs() <= bound.value * share * size).all(), name


def test_what_fails_behind_is_raised_at_the_next_call(tmp_path, monkeypatch):
    model, optimizer, _ = a_training()
    saver = Saver(tmp_path / "run")
    saver.save(model, optimizer, step=1)
    saver.wait()

    def no_space(*args, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver.store, "commit", no_space)
    saver.save(model, optimizer, step=2)
    with pytest.raises(OSError, match="No space left"):
        saver.save(model, optimizer, step=3)
    monkeypatch.undo()
    saver.save(model, optimizer, step=3)
    saver.close()
    steps = [version.step for version in saver.store.log()]
    assert sorted(steps) == [1, 3]


def test_what_fails_last_is_raised_by_close_and_not_over_another_error(tmp_path, monkeypatch):
    model, optimizer, _ = a_training()
    saver = Saver(tmp_path / "run")
    monkeypatch.setattr(saver.store, "commit", lambda *a, **k: (_ for _ in ()).throw(errors.BusyError("in use")))
    saver.save(model, optimizer)
    with pytest.raises(errors.BusyError, match="in use"):
        saver.close()
    with pytest.raises(errors.UsageError, match="closed"):
        saver.save(model, optimizer)
    saver = Saver(tmp_path / "run")
    monkeypatch.setattr(saver.store, "commit", lambda *a, **k: (_ for _ in ()).throw(errors.BusyError("in use")))

    def ends_badly():
        with saver:
            saver.save(model, optimizer)
            raise KeyError("the user's own")

    with pytest.warns(RuntimeWarning, match="the last save failed as well: in use"), pytest.raises(KeyError):
        ends_badly()


def test_one_save_at_a_time(tmp_path, monkeypatch):
    model, _, _ = a_training()
    saver = Saver(tmp_path / "run")
    commit, running, most = saver.store.commit, [], []
    gate = threading.Event()

    def slow(*args, **named):
        running.append(1)
        most.append(len(running))
        gate.wait(5)
        running.pop()
        return commit(*args, **named)

    monkeypatch.setattr(saver.store, "commit", slow)
    saver.save(model, step=1)
    threading.Timer(0.05, gate.set).start()
    saver.save(model, step=2)
    saver.close()
    assert most == [1, 1]
    assert saver.report.seconds_waiting > 0


def test_another_model_or_optimizer_is_refused_by_name(tmp_path):
    model, optimizer, _ = a_training()
    with Saver(tmp_path / "run") as saver:
        saver.save(model, optimizer, step=1)
        with pytest.raises(errors.UsageError, match=r"since the last save: '0.weight' was \[8, 4\], is \[9, 4\]"):
            saver.save(small_model(0, width=9), step=2)
    with Saver(tmp_path / "run") as saver:
        with pytest.raises(errors.UsageError, match=r"'0.weight' was \[8, 4\], is \[9, 4\]"):
            saver.restore(small_model(0, width=9))
        with pytest.raises(errors.UsageError, match="of the optimizer AdamW, not SGD"):
            saver.restore(model, optim.SGD(model.parameters(), 0.1))
        assert saver.restore(model, optimizer).step == 1
        with pytest.raises(errors.UsageError, match="the model changed since the last save"):
            saver.save(small_model(0, width=9), step=2)
    assert nz.Store(tmp_path / "run").resolve() == 0


@pytest.mark.parametrize("bound", [None, "abs:0.01"])
def test_another_model_is_refused_after_a_restart(tmp_path, bound):
    model, optimizer, _ = a_training()
    with Saver(tmp_path / "run", bound=bound) as saver:
        saver.save(model, optimizer, step=1)
    with Saver(tmp_path / "run", bound=bound) as saver:
        with pytest.raises(errors.UsageError, match=r"'0.weight' was \[8, 4\], is \[9, 4\].*a store of its own"):
            saver.save(small_model(0, width=9), step=2)
        other = small_model(0)
        other[2].register_buffer("extra", torch.zeros(3))
        with pytest.raises(errors.UsageError, match=r"'2.extra' was not there, is \[3\]"):
            saver.save(other, step=2)
        saver.save(model, optimizer, step=3)
    assert [version.step for version in saver.store.log()] == [1, 3]


def test_a_damaged_latest_version_does_not_end_the_training(tmp_path):
    model, optimizer, _ = a_training()
    with Saver(tmp_path / "run") as saver:
        saver.save(model, optimizer, step=1)
    for path in (tmp_path / "run" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-20])
    with Saver(tmp_path / "run") as saver:
        saver.save(model, optimizer, step=2)
    assert nz.Store(tmp_path / "run").checkout("step=2")


def test_a_full_disk_is_told_and_costs_no_version(tmp_path):
    model, optimizer, _ = a_training()
    saver = Saver(tmp_path / "run")
    saver.save(model, optimizer, step=1)
    saver.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        saver.save(model, optimizer, step=2)
        with pytest.raises((OSError, errors.Error), match=str(tmp_path / "run")):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saver.save(model, optimizer, step=3)
    saver.close()
    assert [version.step for version in saver.store.log()] == [1, 3]
    assert nz.Store(tmp_path / "run").verify(level="deep").ok


def test_a_store_in_use_is_told_and_costs_no_version(tmp_path, monkeypatch):
    model, optimizer, _ = a_training()
    saver = Saver(tmp_path / "run")
    saver.save(model, optimizer, step=1)
    saver.wait()
    monkeypatch.setattr(saver.store, "commit", functools.partial(saver.store.commit, timeout=0.05))
    with nz.Store(tmp_path / "run")._backend.committing(0):
        saver.save(model, optimizer, step=2)
        with pytest.raises(errors.BusyError, match="another process is writing to this store; try again later"):
            saver.save(model, optimizer, step=3)
    saver.save(model, optimizer, step=4)
    saver.close()
    assert [version.step for version in saver.store.log()] == [1, 4]


def test_settings_that_cannot_be_meant(tmp_path):
    for named in ({"every": 0}, {"every": 1.5}, {"moments": "small"}, {"bound": "abs:x"}, {"policy": "sideways"},
                  {"keep": "most"}, {"method": "zstd", "options": {"levle": 3}}):  # fmt: skip
        with pytest.raises(errors.UsageError):
            Saver(tmp_path / "run", **named)
    with pytest.raises(errors.UsageError, match="metric 'loss' is"):
        Saver(tmp_path / "run").save(nn.Linear(2, 2), metrics={"loss": "low"})


@pytest.mark.parametrize("opened", [False, True])
def test_a_saver_leaves_the_settings_of_its_store(tmp_path, opened):
    nz.Store(tmp_path / "run", create=True, policy="hop:4")
    store = nz.Store(tmp_path / "run")
    model, optimizer, _ = a_training()
    with Saver(store if opened else tmp_path / "run", policy="backward") as saver:
        for step in range(3):
            saver.save(model, optimizer, step=step)
    assert str(saver.store.policy) == "backward"
    assert str(nz.Store(tmp_path / "run").policy) == str(store.policy) == "hop:4"
    assert [row.base for row in saver.store.log()] == [1, 2, None]
    with Saver(tmp_path / "new", policy="backward") as saver:
        saver.save(model, optimizer)
    assert str(nz.Store(tmp_path / "new").policy) == "backward"


def test_a_saver_without_a_bound_takes_that_of_its_store(tmp_path):
    model, optimizer, _ = a_training()
    train(model, optimizer, None, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def errors_of(place, **settings):
        with Saver(place, **settings) as saver:
            saver.save(model, optimizer)
        arrays = saver.store.checkout()
        return {name: np.abs(arrays[f"model/{name}"] - value.numpy()).max() for name, value in weights.items()}

    nz.Store(tmp_path / "one", create=True, bound="abs:0.01")
    found = errors_of(tmp_path / "one")
    assert max(found.values()) > 0.001
    assert all(found[name] <= (0.01 if value.dim() > 1 else 0.01 / 8) for name, value in weights.items())
    assert max(errors_of(tmp_path / "one", bound="lossless").values()) == 0
    nz.Store(tmp_path / "two", create=True, bound={"*": "lossless", "*.weight": "abs:0.02"})
    found = errors_of(tmp_path / "two")
    assert 0.002 < max(found.values()) <= 0.02
    assert all(found[name] == 0 for name in weights if not name.endswith(".weight"))
    assert max(errors_of(tmp_path / "none").values()) == 0


def test_the_report_counts_shared_objects_once(tmp_path):
    model = nn.Linear(300, 300)
    with Saver(tmp_path / "run") as saver:
        for step in range(4):
            with torch.no_grad():
                model.bias += 1
            saver.save(model, step=step)
    assert saver.report.n_bytes == saver.store.stat().n_stored


def test_versions_and_pruning(tmp_path):
    model, optimizer, _ = a_training()
    with Saver(tmp_path / "run", keep="last:2 best:accuracy") as saver:
        for step in range(6):
            train(model, optimizer, None, 1)
            saver.save(model, optimizer, step=step, metrics={"accuracy": -abs(step - 1)})
    assert {v.number for v in saver.store.log() if v.pruned is None} == {1, 4, 5}
    assert saver.restore(*a_training()[:2], version="best:accuracy").step == 1
    with pytest.raises(errors.NotFoundError):
        saver.restore(*a_training()[:2], version=0)


def test_plain_versions_are_no_training(tmp_path):
    nz.Store(tmp_path / "run", create=True).commit({"w": torch.ones(3)})
    with pytest.raises(errors.CorruptError, match="not a training state"):
        Saver(tmp_path / "run").restore(nn.Linear(2, 2))


def test_moments_and_feedback_together(tmp_path):
    model, optimizer, _ = a_training()
    feedback = ErrorFeedback(model, optimizer, "nearzip", bound=nz.Absolute(0.01))
    with Saver(tmp_path / "run", bound=nz.Absolute(0.01), moments=Moments(0.5, 0.5)) as saver:
        for step in range(3):
            train(model, optimizer, None, 1)
            model.eval()(torch.zeros(1, 4))  # leaves M* in the parameters
            model.train()
            saver.save(model, optimizer, step=step)
    feedback.use_original()
    saved = saver.store.checkout()
    assert abs(torch.as_tensor(saved["model/0.weight"]) - model[0].weight).max() <= 0.01
    other, other_optimizer, _ = a_training(1)
    saver.restore(other, other_optimizer)
    assert other_optimizer.state[other[0].weight]["step"] == 3


def test_the_thread_behind_stays_for_the_next_save_and_ends_with_its_saver(tmp_path):
    model, optimizer, _ = a_training()
    saver = Saver(tmp_path / "run")
    for step in range(3):
        saver.save(model, optimizer, step=step)
        saver.wait()
    thread = saver._background._thread
    assert thread.is_alive()
    del saver
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_nothing_of_a_save_is_kept_once_it_has_ended():
    background, kept = Background(), Kept()
    seen = weakref.ref(kept)
    background.start(functools.partial(id, kept))
    del kept
    background.wait()
    gc.collect()
    assert seen() is None
    assert background.seconds_behind > 0


class Kept:
    pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_was_forked_has_a_thread_of_its_own():
    background, gate = Background(), threading.Event()
    background.start(gate.wait)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        background.wait()  # what is under way is the parent's
        background.start(lambda: os.write(writing, b"done"))
        background.wait()
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 4) == b"done"
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    background.wait()


def test_random_generators_are_saved_as_they_were(tmp_path):
    model, _, _ = a_training()
    saver = Saver(tmp_path / "run")
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    saver.save(model, step=1)
    drawn = [torch.rand(3).tolist(), random.random(), np.random.rand()]  # noqa: NPY002
    saver.close()
    Saver(tmp_path / "run").restore(a_training(1)[0])
    assert [torch.rand(3).tolist(), random.random(), np.random.rand()] == drawn  # noqa: NPY002


def test_weights_in_another_order_of_memory_are_saved_as_they_are(tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    with Saver(tmp_path / "run") as saver:
        saver.save(model, step=1)
        with torch.no_grad():
            model.weight.add_(1)
        saver.save(model, step=2)
    assert torch.equal(torch.as_tensor(saver.store.checkout()["model/weight"]), model.weight)
    other = nn.Conv2d(4, 6, 3)
    Saver(tmp_path / "run").restore(other)
    assert equal(model, other)


def test_memory_of_the_snapshot_is_one_copy(tmp_path):
    model, optimizer, _ = a_training()
    train(model, optimizer, None, 1)
    with Saver(tmp_path / "run") as saver:
        saver.save(model, optimizer)
        first = saver.report.snapshot_bytes
        saver.save(model, optimizer)
        gc.collect()
        assert saver.report.snapshot_bytes == first
    exact = sum(v.nbytes for v in model.state_dict().values()) * 3
    assert first <= exact + 6000  # and torch's random state


SCRIPT = """
import sys, warnings, torch
from nearzip.torch import Saver
from nearzip import errors
saver = Saver(sys.argv[1])
if sys.argv[2] == "fail":
    def commit(*a, **k): raise errors.BusyError("in use")
    saver.store.commit = commit
saver.save(torch.nn.Linear(300, 300), step=1)
"""


@pytest.mark.parametrize("how", ["well", "fail"])
def test_a_program_that_ends_without_close(tmp_path, how):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), how], capture_output=True, text=True, check=True
    )
    if how == "fail":
        assert "the last save failed: in use" in run.stderr
    else:
        assert nz.Store(tmp_path / "run").checkout()["model/weight"].shape == (300, 300)


def test_a_step_without_a_bound_rounds_parameters(tmp_path):
    network = nn.Linear(30, 40)
    with Saver(tmp_path / "s", options={"step": 0.01}) as saver:
        saver.save(network, None, step=0)
    weights = Saver(tmp_path / "s").store.checkout("latest")["model/weight"]
    off = abs(weights - network.weight.detach().numpy()).max()
    assert 0 < off <= 0.0051


def test_exact_buffers_that_equal_rounded_parameters_stay_exact(tmp_path):
    network = nn.BatchNorm2d(64)
    with Saver(tmp_path / "s", bound="rms:0.05") as saver:
        saver.save(network, None, step=0)
    back = nn.BatchNorm2d(64)
    Saver(tmp_path / "s").restore(back)
    assert torch.equal(back.running_var, network.running_var)


@pytest.mark.parametrize("by_view", [False, True])
def test_a_tied_head_is_rounded_with_its_embedding(tmp_path, by_view):
    embed, head = nn.Embedding(400, 100), nn.Linear(100, 400, bias=False)
    if by_view:
        del head.weight
        head.register_buffer("weight", embed.weight.detach())
    else:
        head.weight = embed.weight
    network = nn.ModuleDict({"embed": embed, "head": head})
    with Saver(tmp_path / "s", bound="rms:0.05") as saver:
        saver.save(network, None, step=0)
    assert saver.report.n_bytes < 0.25 * embed.weight.numel() * 4
    weights = Saver(tmp_path / "s").store.checkout("latest")
    assert weights["model/head.weight"].tobytes() == weights["model/embed.weight"].tobytes()
    assert weights["model/head.weight"].tobytes() != embed.weight.detach().numpy().tobytes()


def test_a_lost_update_is_logged_once_and_ends_nothing(tmp_path, caplog):
    model, optimizer, _ = a_training()
    with caplog.at_level("WARNING", logger="nearzip"), Saver(tmp_path / "run", bound="abs:10") as saver:
        for step in range(4):
            train(model, optimizer, None, 1)
            saver.save(model, optimizer, step=step)
        saver.wait()
        assert saver.report.update_kept < 0.01
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the update is lost" in caplog.text


def test_a_bound_relative_to_the_update(tmp_path):
    model, optimizer, _ = a_training()
    with Saver(tmp_path / "run", bound="upd:0.1") as saver:
        for step in range(3):
            train(model, optimizer, None, 3)
            saver.save(model, optimizer, step=step)
        saver.wait()
        assert saver.report.update_kept > 0.98
    other = small_model(1)
    assert nz.torch.Saver(tmp_path / "run").restore(other) is not None
    for name, value in model.named_parameters():
        assert (value - other.get_parameter(name)).abs().max() < 0.01


class _Named(nn.Module):
    """The same network, whose parts are called otherwise from version to version of its code."""

    def __init__(self, **parts):
        super().__init__()
        self.names = list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x.square().mean()


def _named(*names):
    torch.manual_seed(0)
    return _Named(**{name: nn.Linear(96, 96) for name in names})


@pytest.mark.parametrize("bound", [None, "rms:0.01"])
def test_a_training_goes_on_under_other_names(tmp_path, bound):
    def a_step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(4, 96)).backward()
        optimizer.step()

    old = _named("encoder", "between", "head")
    optimizer = optim.Adam(old.parameters(), 1e-4)
    with Saver(tmp_path / "run", bound=bound) as saver:
        a_step(old, optimizer)
        saver.save(old, optimizer, step=1)
    new = _named("backbone", "middle", "head")
    new_optimizer = optim.Adam(new.parameters(), 1e-4)
    rename = {"encoder.": "backbone.", "between.": "middle."}
    with pytest.raises(errors.UsageError, match=r"encoder\.weight"):
        Saver(tmp_path / "run").restore(new, new_optimizer)
    with pytest.raises(errors.UsageError, match="rename"):
        Saver(tmp_path / "run", rename={"encoder.": 3})
    with Saver(tmp_path / "run", bound=bound, rename=rename) as saver:
        assert saver.restore(new, new_optimizer).step == 1
        if bound is None:
            assert torch.equal(new.backbone.weight, old.encoder.weight)
            state = new_optimizer.state[new.middle.weight]
            assert torch.equal(state["exp_avg_sq"], optimizer.state[old.between.weight]["exp_avg_sq"])
        for step in (2, 3):
            a_step(new, new_optimizer)
            saver.save(new, new_optimizer, step=step)
    store = nz.Store(tmp_path / "run")
    first, second, third = store.log()
    assert second.base == first.number  # coded against the other names, and as small as the next, which has the same
    assert second.n_stored < first.n_stored
    assert second.n_stored < 1.1 * third.n_stored
    assert store.verify().ok
    again = _named("backbone", "middle", "head")
    for version, step in (("latest", 3), (0, 1)):  # under the new names, and under the old ones
        restored = Saver(store, rename=rename).restore(again, optim.Adam(again.parameters()), version=version)
        assert restored.step == step
    # The names of the model come first: what it still has is not renamed.
    assert Saver(store, rename={"backbone.": "middle.", "head.": "middle."}).restore(new) is not None
