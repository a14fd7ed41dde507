"""Tensors made of tensors through save and restore: torchao's weights and optimizers, DTensor, a class of PyTorch."""

from __future__ import annotations

import collections
import dataclasses
import enum
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

from nearzip import errors  # noqa: E402
from nearzip.torch import Saver, TrainingState, capture, restore  # noqa: E402
from nearzip.torch.trees import pack, unpack  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def there_and_back(value: Any) -> Any:
    tensors: dict[str, Any] = {}
    node = pack(value, "x", tensors)
    return unpack(node, {name: np.asarray(tensor) for name, tensor in tensors.items()})


# ---- plain values ----------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    count: int
    mu: Any
    path: tuple


def test_ordered_dicts_counters_and_named_tuples_keep_their_kind():
    value = {
        "ordered": collections.OrderedDict(b=1, a=[2]),
        "counter": collections.Counter("abba"),
        "moments": Moments(3, torch.ones(2), ("x", Moments(0, None, ()))),
    }
    found = there_and_back(value)
    assert type(found["ordered"]) is collections.OrderedDict
    assert list(found["ordered"].items()) == [("b", 1), ("a", [2])]
    assert type(found["counter"]) is collections.Counter
    assert found["counter"] == value["counter"]
    assert (found["moments"].count, found["moments"].path[1]) == (3, Moments(0, None, ()))
    assert torch.equal(found["moments"].mu, torch.ones(2))
    assert type(found["moments"]).__name__ == "Moments"


@pytest.mark.parametrize(
    "node",
    [
        {"n": ["A", ["x y"], [1]]},
        {"n": ["A", ["x"], [1, 2]]},
        {"n": ["A", ["x", "x"], [1, 2]]},
        {"n": ["import os", ["x"], [1]]},
        {"n": ["A", ["f"] * 300, [1] * 300]},
        {"n": 3},
        {"T": {"class": "x", "parts": [], "context": None}},
        {"T": {"class": None, "parts": {"a": 3}}},
        {"E": [1]},
        {"D": ["x", 3]},
    ],
)
def test_damaged_nodes_are_named_errors(node):
    with pytest.raises((errors.CorruptError, errors.UsageError)):
        unpack(node, {})


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen", "torch.nn.Linear"])
def test_no_class_is_made_because_a_document_names_it(name):
    for node in ({"T": {"class": name, "parts": {}, "context": None}}, {"E": [name, "x"]}, {"D": [name, {"d": []}]}):
        with pytest.raises(errors.UsageError, match="add_safe_globals"):
            unpack(node, {})


class Kind(enum.Enum):
    FIRST = 1


class Word(str, enum.Enum):
    ONE = "one"


@dataclasses.dataclass(frozen=True)
class Setting:
    kind: Kind
    sizes: tuple = (1, 2)


def test_enumerations_and_records_that_are_declared_safe():
    value = [Setting(Kind.FIRST, (3,))]
    with pytest.raises(errors.UsageError, match=r"test_subclasses\.(Kind|Setting).*add_safe_globals"):
        there_and_back(value)
    assert type(there_and_back(Word.ONE)) is str  # as before: a text that happens to be a member
    with torch.serialization.safe_globals([Kind, Setting, Word]):
        assert there_and_back(value) == value
        assert there_and_back(Word.ONE) is Word.ONE


# ---- tensors made of tensors -----------------------------------------------------------------------------------


def two(n: int, seed: int) -> TwoTensor:
    torch.manual_seed(seed)
    return TwoTensor(torch.randn(n, n), torch.randn(n, n))


class Net(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.register_buffer("two", two(3, seed))


def test_a_tensor_of_two_in_model_and_optimizer(tmp_path):
    net = Net(0)
    optimizer = torch.optim.SGD(net.plain.parameters(), momentum=0.9, lr=0.1)
    net.plain(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.state[net.plain.weight]["momentum_buffer"] = two(4, 1)
    with Saver(tmp_path / "store") as saver:
        saver.save(net, optimizer, step=1, extra={"also": two(2, 2)})
    other = Net(5)
    again = torch.optim.SGD(other.plain.parameters(), momentum=0.9, lr=0.1)
    saver = Saver(tmp_path / "store")
    with pytest.raises(errors.UsageError, match=r"two_tensor.TwoTensor; import torch first, or declare"):
        saver.restore(other, again)
    with torch.serialization.safe_globals([TwoTensor]):
        restored = saver.restore(other, again)
    for one, found in (
        (net.two, other.two),
        (two(4, 1), again.state[other.plain.weight]["momentum_buffer"]),
        (two(2, 2), restored.extra["also"]),
    ):
        assert type(found) is TwoTensor
        assert torch.equal(one.a, found.a)
        assert torch.equal(one.b, found.b)
    saver.close()


@pytest.fixture
def torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 8))


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_optimizers_of_few_bits_go_on_as_if_nothing_happened(tmp_path, torchao, name):
    optim = pytest.importorskip("torchao.optim")
    kind = getattr(optim, name)

    def step(net, optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        net(torch.randn(4, 512)).square().mean().backward()
        optimizer.step()

    net = network(0)
    optimizer = kind(net.parameters(), lr=1e-3)
    step(net, optimizer, 1)
    with Saver(tmp_path / "store") as saver:
        saver.save(net, optimizer, step=1)
        other = network(5)
        again = kind(other.parameters(), lr=1e-3)
        saver.restore(other, again)
    moment = again.state[other[0].weight]["exp_avg"]
    assert type(moment) is type(optimizer.state[net[0].weight]["exp_avg"]) is not torch.Tensor
    for each in (net, optimizer), (other, again):
        step(*each, 2)
    for one, found in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, found)


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
def test_quantized_weights_give_the_same_outputs(tmp_path, torchao, config):
    quantization = pytest.importorskip("torchao.quantization")

    def quantized(seed: int) -> nn.Module:
        net = network(seed).to(torch.bfloat16)
        quantization.quantize_(net, getattr(quantization, config)())
        return net

    net, other = quantized(0), quantized(5)
    x = torch.randn(3, 512, dtype=torch.bfloat16)
    assert type(net[0].weight) not in (nn.Parameter, torch.Tensor)
    with torch.no_grad():
        assert not torch.equal(net(x), other(x))
        with Saver(tmp_path / "store", bound="abs:0.001") as saver:
            saver.save(net, step=1)
            saver.restore(other)
        assert type(other[0].weight) is type(net[0].weight)
        # Biases are within the bound; the quantized weights keep every bit.
        for bias in (0, 2):
            other[bias].bias.copy_(net[bias].bias)
        assert torch.equal(net(x), other(x))
        plain = network(1).to(torch.bfloat16)
        with pytest.raises(errors.UsageError, match=r"is a (Parameter|Tensor); quantize the model in the same way"):
            saver.restore(plain)


def test_a_dtensor_of_one_process(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))

        def sharded(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            net = network(seed)
            for layer in (net[0], net[2]):
                layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
                layer.bias = nn.Parameter(distribute_tensor(layer.bias.detach(), mesh, [Shard(0)]))
            return net, torch.optim.Adam(net.parameters())

        def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad()
            x = distribute_tensor(torch.ones(2, 512), mesh, [Shard(0)])
            net(x).square().mean().backward()
            optimizer.step()

        net, optimizer = sharded(0)
        step(net, optimizer)
        state = TrainingState.from_arrays(capture(net, optimizer).to_arrays())
        assert all(type(tensor) is np.ndarray for tensor in state.tensors.values())
        other, again = sharded(5)
        restore(state, other, again)
        assert isinstance(again.state[other[0].weight]["exp_avg"], DTensor)
        step(net, optimizer)
        step(other, again)
        for one, found in zip(net.parameters(), other.parameters(), strict=True):
            assert isinstance(found, DTensor)
            assert torch.equal(one.to_local(), found.to_local())
        plain = network(5)
        restore(state, plain)
    finally:
        dist.destroy_process_group()
