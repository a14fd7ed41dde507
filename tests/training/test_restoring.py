"""Restoring into a model that is not quite the one that was saved: other heads, wrapped models, extra state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn, optim

import nearzip as nz
from nearzip import errors
from nearzip.torch import Saver, TrainingState, capture, load_model, restore, save_model
from nearzip.torch.wrappers import matched_names, plain_names
from tests.training.small import small_model

# `torch.compile` imports what PyTorch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def stepped(model, kind=optim.AdamW):
    """An optimizer of the model that has taken a step."""
    optimizer = kind(model.parameters(), 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return optimizer


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def compiled(model):
    return torch.compile(model)  # compiles at the first call, which no test makes


def same_state(one, other):
    """Whether two optimizers hold the same."""
    a, b = one.state_dict()["state"], other.state_dict()["state"]
    return a.keys() == b.keys() and all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i])


# ---- a part ----------------------------------------------------------------------------------------------------


def with_head(n, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, n))


def test_the_backbone_below_another_head(tmp_path, caplog):
    model = with_head(10, 0)
    with Saver(tmp_path / "store") as saver:
        saver.save(model, stepped(model), step=7, metrics={"loss": 0.5})
        other = with_head(20, 1)
        optimizer, before = optim.AdamW(other.parameters()), copied(other)
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        found = saver.restore(other, optimizer, strict=False)
        assert torch.equal(torch.rand(2), expected)  # this training's own generators
        assert (found.step, found.metrics, found.version) == (7, {"loss": 0.5}, 0)
        assert (found.missing, found.unexpected) == ((), ())
        assert found.mismatched == ("2.weight", "2.bias")
        for name, value in other.state_dict().items():
            assert torch.equal(value, before[name] if name.startswith("2.") else model.state_dict()[name]), name
        assert optimizer.state_dict()["state"] == {}
        assert len(found.notes) == 1
        assert "not restored: optimizer, since the saved state does not fit" in found.notes[0]
        assert found.notes[0] in caplog.text
        with pytest.raises(errors.UsageError, match=r"'2.weight' was \[10, 4\], is \[20, 4\]; strict=False restores"):
            saver.restore(other)
        with pytest.raises(errors.UsageError, match="save another model into a store of its own"):
            saver.save(other, step=8)


def test_names_that_only_one_side_has():
    state = capture(nn.ModuleDict({"a": nn.Linear(2, 2), "old": nn.Linear(2, 3)}))
    other = nn.ModuleDict({"a": nn.Linear(2, 2), "new": nn.Linear(2, 3)})
    found = restore(state, other, strict=False)
    assert found.missing == ("new.weight", "new.bias")
    assert found.unexpected == ("old.weight", "old.bias")
    assert torch.equal(other["a"].weight, state.tensors["model/a.weight"])
    nothing = restore(state, nn.Linear(2, 2), strict=False)
    assert len(nothing.unexpected) == 4


def test_a_resized_vocabulary():
    def network(n):
        model = nn.ModuleDict({"embedding": nn.Embedding(n, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, n)})
        model["head"].weight = model["embedding"].weight
        return model

    saved, grown = network(30), network(33)
    before = grown["embedding"].weight.detach().clone()
    found = restore(capture(saved), grown, strict=False)
    assert found.mismatched == ("embedding.weight", "head.weight", "head.bias")
    assert torch.equal(grown["body"].weight, saved["body"].weight)
    assert torch.equal(grown["embedding"].weight, before)


class Language(nn.Module):
    def __init__(self, n, tied, width=4):
        super().__init__()
        self.embedding = nn.Embedding(n, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, n)
        if tied:
            self.head.weight = self.embedding.weight

    def resize(self, n, tied):
        """As `resize_token_embeddings` does: the old rows are kept."""
        new = Language(n, tied)
        with torch.no_grad():
            for own, old in ((new.embedding, self.embedding), (new.head, self.head)):
                k = min(n, len(old.weight))
                own.weight[:k] = old.weight[:k]
        new.body = self.body
        return new


@pytest.mark.parametrize("bound", [None, "abs:0.001"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_is_resized_between_saves(tmp_path, caplog, tied, bound):
    torch.manual_seed(0)
    model = Language(30, tied)
    saved = []
    with Saver(tmp_path / "store", bound=bound) as saver:
        for step, n in enumerate((30, 30, 33, 33, 20)):
            if n != model.embedding.num_embeddings:
                model = model.resize(n, tied)
            optimizer = stepped(model)
            saver.save(model, optimizer, step=step)
            saved.append((copied(model), optimizer))
            saver.wait()
    assert caplog.text.count("the vocabulary changed from") == 2
    assert "from 30 to 33 rows" in caplog.text
    with Saver(tmp_path / "store") as saver:
        for version, (weights, optimizer) in enumerate(saved):
            fresh = Language(len(weights["embedding.weight"]), tied)
            other = optim.AdamW(fresh.parameters())
            saver.restore(fresh, other, version=version)
            assert max((fresh.state_dict()[n] - w).abs().max() for n, w in weights.items()) <= (1e-3 if bound else 0)
            assert bound or same_state(optimizer, other)
        saver.save(compiled(fresh.resize(25, tied)), step=9)  # another process, and wrapped
        with pytest.raises(errors.UsageError, match="save another model"):
            saver.save(Language(25, tied, width=5), step=10)
        other_head = Language(25, False)
        other_head.head = nn.Linear(4, 7)
        with pytest.raises(errors.UsageError, match="save another model"):
            saver.save(other_head, step=11)


def test_without_strict_all_is_restored_that_fits():
    model = small_model(0)
    optimizer = stepped(model)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    state = capture(model, optimizer, scheduler)
    other = small_model(1)
    other_optimizer = optim.AdamW(other.parameters())
    other_scheduler = optim.lr_scheduler.ExponentialLR(other_optimizer, 0.5)
    found = restore(state, other, other_optimizer, other_scheduler, strict=False)
    assert (found.missing, found.unexpected, found.mismatched, found.notes) == ((), (), (), ())
    assert same_state(optimizer, other_optimizer)
    assert other_scheduler.last_epoch == 1

    sgd = optim.SGD(other.parameters(), 0.1)
    found = restore(state, other, sgd, optim.lr_scheduler.ConstantLR(sgd), strict=False)
    assert found.notes == (
        "not restored: optimizer: the state is of the optimizer AdamW, not SGD",
        "not restored: scheduler: the state is of the scheduler ExponentialLR, not ConstantLR",
    )


def test_a_lazy_module_takes_what_was_saved():
    saved, lazy = nn.Linear(5, 3), nn.LazyLinear(3)
    restore(capture(saved), lazy)
    assert torch.equal(lazy.weight, saved.weight)


# ---- wrapped models --------------------------------------------------------------------------------------------


def compiled_inside(model):
    model[0] = torch.compile(model[0])
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "compile": compiled,
    "compile-inside": compiled_inside,
    "DataParallel": nn.DataParallel,
    "DataParallel-of-compile": lambda model: nn.DataParallel(compiled(model)),
    "compile-of-DataParallel": lambda model: compiled(nn.DataParallel(model)),
}


@pytest.mark.parametrize("after", WRAPPERS)
@pytest.mark.parametrize("before", WRAPPERS)
def test_wrapped_models_and_plain_ones(before, after):
    model = WRAPPERS[before](small_model(0))
    optimizer = stepped(model)
    state = capture(model, optimizer)
    assert {name for name in state.tensors if name.startswith("model/")} == {
        f"model/{name}" for name in small_model(0).state_dict()
    }
    assert "0.weight" in state.document["parameters"]
    other = WRAPPERS[after](small_model(1))
    other_optimizer = optim.AdamW(other.parameters())
    restore(state, other, other_optimizer)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert same_state(optimizer, other_optimizer)


def as_saved_before(state: TrainingState, prefix: str) -> TrainingState:
    """As releases saved it that kept the wrapper's names."""
    tensors = {name.replace("model/", f"model/{prefix}"): value for name, value in state.tensors.items()}
    document = {**state.document, "parameters": [prefix + name for name in state.document["parameters"]]}
    document["optimizers"] = [
        {
            **part,
            "groups": [{**group, "names": [prefix + name for name in group["names"]]} for group in part["groups"]],
            "state": [[prefix + name, nodes] for name, nodes in part["state"]],
        }
        for part in state.document["optimizers"]
    ]
    return TrainingState(tensors, document)


@pytest.mark.parametrize("after", WRAPPERS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_states_with_names_of_wrappers_stay_readable(prefix, after):
    model = small_model(0)
    optimizer = stepped(model)
    old = as_saved_before(capture(model, optimizer), prefix)
    other = WRAPPERS[after](small_model(1))
    other_optimizer = optim.AdamW(other.parameters())
    restore(old, other, other_optimizer)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert same_state(optimizer, other_optimizer)


def test_a_store_with_names_of_wrappers_takes_further_saves(tmp_path):
    model = small_model(0)
    old = as_saved_before(capture(model, stepped(model)), "_orig_mod.")
    store = nz.Store(tmp_path / "store", create=True)
    store.commit({name: np.asarray(value) for name, value in old.to_arrays().items()})
    with Saver(store) as saver:
        assert saver.save(compiled(model), step=1)
    with Saver(store) as saver:
        assert saver.save(model, step=2)
        with pytest.raises(errors.UsageError, match=r"'0.weight' was \[8, 4\], is \[7, 4\]"):
            saver.save(compiled(small_model(0, width=7)), step=3)
    assert "model/0.weight" in store.checkout()


def test_wrapped_and_partial_together():
    state = capture(nn.DataParallel(with_head(10, 0)))
    other = compiled(with_head(20, 1))
    found = restore(state, other, strict=False)
    assert found.mismatched == ("_orig_mod.2.weight", "_orig_mod.2.bias")
    assert torch.equal(other.state_dict()["_orig_mod.0.weight"], state.tensors["model/0.weight"])


def test_a_module_of_that_name_is_no_wrapper():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.ones(3))

    names = ["module.weight", "module.bias", "weight"]
    assert plain_names(Own(), names) == {name: name for name in names}
    model, other = Own(), Own()
    restore(capture(model), other)
    assert torch.equal(model.module.weight, other.module.weight)
    average = optim.swa_utils.AveragedModel(model)
    state = capture(average)
    assert "model/module.module.weight" in state.tensors
    assert "model/n_averaged" in state.tensors
    # An average into a plain model: one number more.
    found = restore(state, other, strict=False)
    assert (found.missing, found.unexpected) == ((), ("n_averaged",))


def test_names_that_would_become_one_are_kept():
    assert matched_names(["module.w", "w"], {"module.w": "module.w", "w": "w"}) == {"module.w": "module.w", "w": "w"}
    assert matched_names(["module.w", "w"], {"_orig_mod.w": "w"}) == {"w": "_orig_mod.w"}


# ---- extra state -----------------------------------------------------------------------------------------------


class WithBuffer(nn.Module):
    """Keeps bytes of varying length, as Transformer Engine's FP8 modules do."""

    def __init__(self, n, shape=(-1,)):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.extra = (torch.arange(n) % 251).to(torch.uint8).reshape(shape)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, value):
        self.extra = value


def test_extra_state_changes_its_length_from_save_to_save(tmp_path):
    lengths = [2322, 0, 7, 5000]
    with Saver(tmp_path / "store", bound=nz.Absolute(1e-2)) as saver:
        for step, n in enumerate(lengths):
            saver.save(nn.Sequential(WithBuffer(n)), step=step)
    with Saver(tmp_path / "store") as saver:
        for version, n in enumerate(lengths):
            fresh = nn.Sequential(WithBuffer(4))
            saver.restore(fresh, version=version)
            assert torch.equal(fresh[0].extra, WithBuffer(n).extra)


@pytest.mark.parametrize(("was", "is_now"), [
    (torch.ones(3), None), ({"a": 1}, torch.ones(3)), (None, {"a": 1}), (torch.ones(2, 3), torch.ones(2)),
])  # fmt: skip
def test_extra_state_changes_its_type(was, is_now):
    model, other = WithBuffer(1), WithBuffer(1)
    model.extra, other.extra = was, is_now
    restore(TrainingState.from_arrays(capture(model).to_arrays()), other)
    assert torch.equal(other.extra, was) if isinstance(was, torch.Tensor) else other.extra == was


def test_load_model_with_extra_state(tmp_path):
    model, other = WithBuffer(9), WithBuffer(2)
    save_model(model, tmp_path / "m.nz")
    other.extra = {"not": "a tensor"}
    assert load_model(other, tmp_path / "m.nz") == ([], [])
    assert torch.equal(other.extra, model.extra)


# ---- many processes --------------------------------------------------------------------------------------------


def test_only_the_first_process_saves(tmp_path, monkeypatch):
    model = small_model(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with Saver(tmp_path / "store") as other:
        assert not other.writes
        assert not other.save(model, step=1)
        assert not other.save(model, step=1, force=True)
        assert other.report.n_saves == 0
        assert other.restore(model) is None
        monkeypatch.setenv("RANK", "0")
        with Saver(tmp_path / "store") as first:
            assert first.save(model, step=1)
        monkeypatch.setenv("RANK", "1")
        fresh = small_model(1)
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        assert other.restore(fresh).step == 1
        assert torch.equal(torch.rand(2), expected)  # not those of the first process
        assert torch.equal(fresh[0].weight, model[0].weight)
    assert len(other.store) == 1
    with Saver(tmp_path / "own", writes=True) as own:
        assert own.save(model, step=1)
    assert len(own.store) == 1


def worker(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(small_model(0))
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    with Saver(f"{folder}/store") as saver:
        for step in range(1, 4):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank))).sum().backward()
            optimizer.step()
            assert saver.save(model, optimizer, step=step) == (rank == 0)
    torch.distributed.barrier()
    other = nn.parallel.DistributedDataParallel(small_model(1))
    with Saver(f"{folder}/store") as saver:
        assert saver.restore(other, optim.AdamW(other.parameters())).step == 3
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    if rank == 0:
        torch.save(model.module.state_dict(), f"{folder}/end.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_ddp_in_two_processes_and_back_into_a_plain_model(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    store = nz.Store(tmp_path / "store")
    assert [version.step for version in store.log()] == [1, 2, 3]
    plain = small_model(2)
    with Saver(store) as saver:
        saver.restore(plain, optim.AdamW(plain.parameters()))
    for name, value in torch.load(tmp_path / "end.pt", weights_only=True).items():
        assert torch.equal(value, plain.state_dict()[name]), name
