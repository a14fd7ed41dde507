"""Thinning: which channels go together, masked and thinned networks, and modules rebuilt from files."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
from idx import write_mnist

pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import torch
from torch import nn

import nearzip as nz
from experiments.claims.condense import networks
from experiments.claims.condense.networks import inputs_for, made
from experiments.lab.networks import NETWORKS
from nearzip import condense
from nearzip.condense.groups import TOLERANCE, find_groups
from nearzip.condense.recovery import load_values, marked
from nearzip.errors import Error, UsageError
from nearzip.torch import evaluator

SMALL = ("lenet-300-100", "lenet-5", "vgg-small", "resnet-20", "mobilenet-small", "transformer-small")


LONG = sorted(set(NETWORKS) - set(SMALL))


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_masked_thinned_and_rebuilt_networks_give_the_same_outputs(name):
    row = networks.checked(name)
    assert row["thinned_parameters"] < 0.8 * row["parameters"]
    assert row["difference"] <= TOLERANCE
    assert row["rebuilt_equal"]
    assert any("makes the network's outputs" in note for note in row["not_thinned"])


def test_the_bench_of_whole_files_runs_on_a_few_images(tmp_path, monkeypatch):
    from experiments.claims.condense import files

    monkeypatch.setenv("NEARZIP_CACHE", str(tmp_path / "cache"))
    data = write_mnist(tmp_path, np.random.default_rng(0), 460, 100)
    arguments = ["--tiny", "--networks", "lenet-300-100", "--data", str(data), "--output", str(tmp_path)]
    files.main(arguments)
    one = json.loads((tmp_path / "condense_files.json").read_text())["networks"]["lenet-300-100"]
    assert one["trainings"] == 1
    assert one["rows"][0]["name"] == "nearzip.condense"
    assert all(row["bytes"] > 0 for row in one["rows"])


def test_a_transformer_thins_its_feed_forwards_and_names_the_rest():
    groups, notes = find_groups(made("transformer-small"), inputs_for("transformer-small"))
    assert [group.name for group in groups] == ["b.0.f", "b.1.f", "b.2.f"]
    assert any("LayerNorm" in note for note in notes)
    assert any(note.startswith("h: makes the network's outputs") for note in notes)


@pytest.mark.long
def test_shuffled_channels_are_named_and_the_others_thinned():
    groups, notes = find_groups(made("shufflenet-v2"), inputs_for("shufflenet-v2"))
    assert len(groups) > 10
    assert any("left.1.0" in note for note in notes)


class FixedWidth(nn.Module):
    """A forward that knows a width of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 12))


def test_a_forward_with_fixed_widths_is_named():
    with pytest.raises(UsageError, match=r"no layer of the network can be thinned: a: .*does not run.*b: makes"):
        condense.Structure().prepare(FixedWidth(), torch.zeros(2, 8))


def test_structure_needs_inputs_that_run():
    with pytest.raises(UsageError, match="needs inputs="):
        condense.Structure().prepare(made("lenet-5"))
    with pytest.raises(UsageError, match=r"does not run on inputs=: RuntimeError"):
        condense.Structure().prepare(made("lenet-5"), torch.zeros(2, 3, 28, 28))


def test_widths_fall_with_keep_and_are_multiples():
    prepared = condense.Structure(align=8, floor=9).prepare(made("vgg-small"), inputs_for("vgg-small"))
    before = dict.fromkeys(prepared.widths(1.0), 10**6)
    for keep in np.linspace(1, 0.01, 60):
        widths = prepared.widths(keep)
        assert all(width <= before[name] for name, width in widths.items())
        assert all(width % 8 == 0 and width >= 16 for width in widths.values())
        assert widths == prepared.widths(prepared.snap(keep))
        before = widths


def test_thinning_that_changes_the_outputs_is_refused(monkeypatch):
    module, inputs = made("lenet-5"), inputs_for("lenet-5")
    prepared = condense.Structure().prepare(module, inputs)
    monkeypatch.setattr("nearzip.condense.structure.relative_difference", lambda *_: 0.5)
    with pytest.raises(Error, match=r"thinning changed the outputs by 0\.5, more than 0\.0001, in the groups"):
        prepared.thin(copy.deepcopy(module), 0.5)


# ---- fit -------------------------------------------------------------------------------------------------------


def thin_state(keep=0.5):
    module = made("vgg-small")
    prepared = condense.Structure().prepare(module, inputs_for("vgg-small"))
    load_values(module, prepared.project(marked(module, prepared), keep))
    return {name: value.numpy() for name, value in prepared.thin(module, keep).state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.0.weight"), "tensor '0.0.weight' of the module is not among the tensors given"),
        (lambda s: s.update(odd=np.zeros(3, np.float32)), "tensor 'odd': the module has none of that name"),
        (lambda s: s.update({"0.1.bias": s["0.1.bias"][:-1]}), "tensors of layer '0.1' contradict each other"),
        (lambda s: s.update({"0.0.weight": s["0.0.weight"][:, :, :1]}), "dimension 2 of a Conv2d cannot be thinned"),
        (lambda s: s.update({"12.bias": np.zeros(11, np.float32)}), r"tensor '12.bias' is \[11\]; a thinned one"),
        (lambda s: s.update({"12.bias": np.zeros((10, 1), np.float32)}), r"tensor '12.bias' is \[10, 1\]"),
        (lambda s: s.update({"0.0.weight": s["0.0.weight"][:0]}), "a layer needs at least one row"),
    ],
)
def test_shapes_that_no_thinned_network_has_are_refused_and_change_nothing(change, message):
    state = thin_state()
    change(state)
    module = made("vgg-small")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        condense.fit(module, state)
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_shapes_are_checked_before_anything_is_decoded():
    class Index:
        tensors = nz.open(nz.compress({"weight": np.zeros((5, 4), np.float32)}).to_bytes()).index.tensors

    class Hostile(dict):
        index = Index()

        def __getitem__(self, name):
            raise AssertionError("decoded")

    with pytest.raises(UsageError, match=r"tensor 'weight' is \[5, 4\]"):
        condense.fit(nn.Linear(4, 4, bias=False), Hostile(weight=None))


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.a(x) + self.b(x)

    values = torch.randn(4, 6)
    module = condense.fit(Tied(), {"a.weight": values, "b.weight": values})
    assert module.a.weight is module.b.weight
    assert module.a.out_features == 4


def test_an_evaluator_fits_itself_to_a_thinned_network():
    module, inputs = made("mobilenet-small"), torch.randn(20, 3, 32, 32)
    batches = [(inputs, torch.arange(20) % 10)]
    prepared = condense.Structure().prepare(module, inputs_for("mobilenet-small"))
    small = copy.deepcopy(module)
    load_values(small, prepared.project(marked(module, prepared), 0.5))
    small = prepared.thin(small, 0.5)
    expected = evaluator(small, batches, "loss")(small.state_dict())
    assert evaluator(module, batches, "loss")(small.state_dict()) == pytest.approx(expected)


def test_a_base_of_the_original_shapes_and_a_store_work_or_are_refused_by_name(tmp_path):
    module, state = made("vgg-small"), thin_state()
    original = {name: value.numpy() for name, value in module.state_dict().items()}
    # What has other shapes than the base is coded without it; a base that was not there at encoding is refused by name.
    archive = nz.compress(state, base=original)
    assert {n: a.shape for n, a in archive.restored.items()} == {n: a.shape for n, a in state.items()}
    data = nz.compress(state, base=state | {"0.0.bias": state["0.1.bias"]}).to_bytes()
    with pytest.raises(nz.errors.WrongBaseError, match=r"0\.0\.weight|base"):
        nz.decompress(data, base=original)
    store = nz.Store(str(tmp_path / "s"), create=True)
    store.commit(original)
    number = store.commit(state)
    assert {n: a.shape for n, a in store.checkout(number).items()} == {n: a.shape for n, a in state.items()}


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(nz.errors.MissingExtraError, match=r"pip install 'nearzip\[condense\]'"):
        condense.Structure().prepare(made("lenet-5"), inputs_for("lenet-5"))
