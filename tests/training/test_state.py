"""Training state goes out to arrays and comes back into live objects, bit for bit or within its steps."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import pathlib
import random

import numpy as np
import pytest
import torch
import zstandard
from torch import nn, optim

from nearzip import errors
from nearzip.torch import Moments, TrainingState, capture, restore
from nearzip.torch.state import DOCUMENT
from nearzip.torch.trees import unpack
from tests.training.small import small_model, train

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "plain-sgd": lambda p: optim.SGD(p, 0.05),
    "adam": lambda p: optim.Adam(p, 1e-2),
    "amsgrad": lambda p: optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 1e-2),
    "nadam": lambda p: optim.NAdam(p, 1e-2),
    "rmsprop": lambda p: optim.RMSprop(p, 1e-3, momentum=0.9),
    "adagrad": lambda p: optim.Adagrad(p, 1e-2),
    "adadelta": lambda p: optim.Adadelta(p),
    "lbfgs-like": lambda p: optim.Rprop(p, 1e-3),
}


def round_trip(state: TrainingState) -> TrainingState:
    return TrainingState.from_arrays({name: array.copy() for name, array in state.to_arrays().items()})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(kind):
    model = small_model(0)
    optimizer = OPTIMIZERS[kind](model.parameters())
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    train(model, optimizer, scheduler, 5)
    state = round_trip(capture(model, optimizer, scheduler, step=5, metrics={"loss": 0.5}))
    train(model, optimizer, scheduler, 5)

    other = small_model(1)
    other_optimizer = OPTIMIZERS[kind](other.parameters())
    other_scheduler = optim.lr_scheduler.CosineAnnealingLR(other_optimizer, 50)
    restored = restore(state, other, other_optimizer, other_scheduler)
    assert (restored.step, restored.metrics) == (5, {"loss": 0.5})
    train(other, other_optimizer, other_scheduler, 5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("scheduler", [
    lambda o: optim.lr_scheduler.MultiStepLR(o, [2, 2, 4]),
    lambda o: optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    lambda o: optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    lambda o: optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.LinearLR(o), optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]),
])  # fmt: skip
def test_schedulers(scheduler):
    def make():
        model = nn.Linear(2, 2)
        optimizer = optim.SGD(model.parameters(), 0.1)
        return model, optimizer, scheduler(optimizer)

    def rates(optimizer, schedule, n):
        found = []
        for i in range(n):
            optimizer.step()
            schedule.step(*([float(i % 3)] if isinstance(schedule, optim.lr_scheduler.ReduceLROnPlateau) else []))
            found.append([group["lr"] for group in optimizer.param_groups])
        return found

    model, optimizer, schedule = make()
    rates(optimizer, schedule, 3)
    state = round_trip(capture(model, optimizer, schedule))
    expected = rates(optimizer, schedule, 6)
    model, optimizer, schedule = make()
    restore(state, model, optimizer, schedule)
    assert rates(optimizer, schedule, 6) == expected


def test_random_generators_and_scaler_and_loader():
    model = nn.Linear(2, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(5)
    random.gauss(0, 1)
    state = round_trip(capture(model, scaler=scaler, loader={"epoch": 3, "at": 17}, extra=("mine", [1.5, math.inf])))
    expected = random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    other = torch.amp.GradScaler("cpu", init_scale=4.0)
    restored = restore(state, model, scaler=other)
    got = random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    assert expected[:2] == got[:2]
    assert torch.equal(expected[2], got[2])
    assert other.get_scale() == 128.0
    assert restored.loader == {"epoch": 3, "at": 17}
    assert restored.extra == ("mine", [1.5, math.inf])


@pytest.mark.parametrize("value", [
    pathlib.Path("runs/one"), argparse.Namespace(lr=0.1, inner=argparse.Namespace(path=pathlib.Path("a"))),
    torch.device("cuda", 3), torch.device("cpu"), torch.Size([2, 3]), torch.Size([1] * 20), torch.Size([]),
    {1, "a", 2.5}, set(), set(range(40)), frozenset({(1, 2)}), complex(1, -0.0), np.complex128(2j),
    {torch.float16: {"w"}}, collections.Counter({"a": 2}), {pathlib.Path("k"): torch.device("meta")},
])  # fmt: skip
def test_harmless_values_of_research_code(value):
    model = nn.Linear(2, 2)
    found = restore(round_trip(capture(model, extra=[value])), model).extra[0]
    assert found == value
    assert type(found) is (complex if isinstance(value, np.complex128) else type(value))
    assert repr(found) == repr(value) or isinstance(value, (set, np.complex128))


@pytest.mark.parametrize("node", [
    {"e": "no such"}, {"e": 1}, {"P": 3}, {"S": 1}, {"S": [1]}, {"S": {"l": [{"l": []}]}}, {"F": {"d": 1}},
    {"g": [[1, 2]]}, {"g": 1}, {"C": ["a", "b"]}, {"C": ["1"]}, {"C": [{}, 1]}, {"z": [-1]}, {"z": ["a"]},
    {"z": [1 << 70]}, {"z": 2},
])  # fmt: skip
def test_damaged_values_are_named(node):
    with pytest.raises(errors.CorruptError, match="training state"):
        unpack(node, {})


def test_random_generators_stay_if_asked():
    model = nn.Linear(2, 2)
    state = capture(model)
    torch.manual_seed(11)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(11))
    restore(state, model, rng=False)
    assert torch.equal(torch.rand(2), expected)


class Stateful:
    def __init__(self, at=0):
        self.at = at

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_loader_with_state():
    model, loader = nn.Linear(2, 2), Stateful()
    restore(round_trip(capture(model, loader=Stateful(9))), model, loader=loader)
    assert loader.at == 9


class WithExtra(nn.Linear):
    note = "first"

    def get_extra_state(self):
        return {"note": self.note, "table": torch.arange(3)}

    def set_extra_state(self, state):
        self.note = state["note"]


def test_extra_state_ties_and_half_precision():
    model = nn.Sequential(WithExtra(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    model[0].note = "kept"
    model.register_module("tied", model[1])
    other = nn.Sequential(WithExtra(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    other.register_module("tied", other[1])
    restore(round_trip(capture(model)), other)
    assert other[0].note == "kept"
    assert torch.equal(other.tied.weight, model[1].weight)


# ---- what does not fit -----------------------------------------------------------------------------------------


def saved(kind="adam"):
    model = small_model(0)
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, None, 2)
    return round_trip(capture(model, optimizer))


@pytest.mark.parametrize(("change", "message"), [
    (lambda: (nn.Linear(3, 3), None), "does not fit the model: it has no 'weight', 'bias' and holds"),
    (lambda: (small_model(0, width=7), None), r"'0.weight' was \[8, 4\], is \[7, 4\]"),
    (lambda: (m := small_model(0), optim.SGD(m.parameters(), 0.1)), "of the optimizer Adam, not SGD"),
    (lambda: (m := small_model(0), optim.Adam(m[0].parameters())), "parameters differ: group 0 lacks '1.weight'"),
    (lambda: (m := small_model(0), optim.Adam([{"params": [p]} for p in m.parameters()])), "had 1 groups, this one"),
    (lambda: (m := small_model(0), optim.Adam(list(m.parameters())[::-1])), "in another order"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    model, optimizer = change()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(errors.UsageError, match=message):
        restore(saved(), model, optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_was_not_saved_is_named():
    model = nn.Linear(2, 2)
    state = capture(model)
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(errors.UsageError, match="saved without an optimizer"):
        restore(state, model, optimizer)
    with pytest.raises(errors.UsageError, match="saved without a scheduler"):
        restore(state, model, scheduler=optim.lr_scheduler.ConstantLR(optimizer))
    state = capture(model, scheduler=optim.lr_scheduler.ConstantLR(optimizer))
    with pytest.raises(errors.UsageError, match="scheduler ConstantLR, not ExponentialLR"):
        restore(state, model, scheduler=optim.lr_scheduler.ExponentialLR(optimizer, 0.5))


@pytest.mark.parametrize("value", [lambda: 1, object(), {print}, {"a": [print]}, argparse.Namespace(a=print)])
def test_what_cannot_be_stored_is_named(value):
    with pytest.raises(errors.UsageError, match=r"extra.* cannot be stored"):
        capture(nn.Linear(2, 2), extra=value)


def test_an_optimizer_has_to_be_one():
    with pytest.raises(errors.UsageError, match="is a dict, not a torch"):
        capture(nn.Linear(2, 2), {})
    with pytest.raises(errors.UsageError, match="whole number"):
        capture(nn.Linear(2, 2), step=1.5)


# ---- damaged documents -----------------------------------------------------------------------------------------


def with_document(arrays, document):
    data = zstandard.ZstdCompressor().compress(json.dumps(document).encode())
    return {**arrays, DOCUMENT: np.frombuffer(data, np.uint8)}


def test_plain_tensors_are_no_training_state():
    with pytest.raises(errors.CorruptError, match="not a training state"):
        TrainingState.from_arrays({"w": np.ones(2)})


def test_every_damage_of_the_document_is_named():
    state = saved("sgd").shrunk(Moments(), {})
    arrays, rng = state.to_arrays(), random.Random(0)
    model = small_model(0)
    text = json.dumps(state.document)
    for _ in range(300):
        at = rng.randrange(len(text))
        try:
            document = json.loads(text[:at] + rng.choice('01x{}[]",:n') + text[at + 1 :])
        except ValueError:
            continue
        optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
        with contextlib.suppress(errors.Error):
            restore(TrainingState.from_arrays(with_document(arrays, document)).expanded(), model, optimizer, rng=False)
    for damaged in (b"", b"abc", arrays[DOCUMENT].tobytes()[:-3]):
        with pytest.raises(errors.CorruptError):
            TrainingState.from_arrays({**arrays, DOCUMENT: np.frombuffer(damaged, np.uint8)})
    with pytest.raises(errors.NewerFormatError):
        TrainingState.from_arrays(with_document(arrays, {**state.document, "format": 99}))
    bomb = zstandard.ZstdCompressor().compress(b" " * (65 << 20))
    with pytest.raises(errors.CorruptError):
        TrainingState.from_arrays({**arrays, DOCUMENT: np.frombuffer(bomb, np.uint8)})
