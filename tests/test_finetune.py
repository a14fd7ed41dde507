"""Fine-tuning with masks, shared and frozen values held, under optimizers that move what has no gradient."""

from __future__ import annotations

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import UsageError
from nearzip.recipes import Hold
from nearzip.recipes.retrain import retrained

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nearzip.torch import finetune, holding, prune, share  # noqa: E402


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4))


def training(make_optimizer, steps=5):
    """One epoch on noise; the optimizer is made anew, after what is held was chosen."""
    x, y = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 4

    def train_epoch(network):
        optimizer = make_optimizer(network.parameters())
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    return train_epoch


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_zero_and_the_rest_learns(optimizer):
    network = module()
    losses = finetune(network, training(optimizer), epochs=4, keep=0.3)
    assert losses[-1] < losses[0]
    for weight in (network[0].weight, network[3].weight):
        assert (weight != 0).sum() == round(0.3 * weight.numel())
    assert (network[0].bias != 0).all()


def test_an_optimizer_made_before_and_its_momentum_do_no_harm():
    network = module()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    train = training(lambda parameters: optimizer)
    train(network)
    prune(network, 0.2)
    zero = network[0].weight.detach() == 0
    finetune(network, train)
    assert not network[0].weight[zero].any()
    before = network[0].weight.detach().clone()
    train(network)
    assert network[0].weight[zero].any(), "nothing is held afterwards"
    assert not torch.equal(before, network[0].weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shared_values_stay_shared_and_move(optimizer):
    network = module()
    share(network, {"0.weight": 4})
    before = network[0].weight.detach().unique()
    assert before.numel() == 4
    finetune(network, training(optimizer), hold=Hold(shared=("0.weight",)))
    after = network[0].weight.detach().unique()
    assert after.numel() <= 4
    assert not torch.equal(before, after)


def test_a_shared_value_gets_the_sum_of_its_weights_gradients():
    """Deep Compression, section 3.3."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.5, -1.0, 0.0]]))
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    with holding(layer, Hold(zeros=("weight",), shared=("weight",))):
        layer(x).sum().backward()
        assert layer.weight.grad.tolist() == [[3, 3, 4, 0]]


def test_masks_and_shared_values_together():
    network = module()
    finetune(network, training(OPTIMIZERS[0]), keep=0.4, clusters=8)
    weight = network[0].weight.detach()
    assert (weight == 0).sum() == weight.numel() - round(0.4 * weight.numel())
    assert weight[weight != 0].unique().numel() <= 8


def test_frozen_tensors_stay_buffers_as_well():
    network = module()
    names = ("0.weight", "0.bias", "2.running_mean")
    before = {name: network.state_dict()[name].clone() for name in names}
    finetune(network, training(OPTIMIZERS[1]), hold=Hold(frozen=names))
    for name in names:
        assert torch.equal(before[name], network.state_dict()[name]), name
    assert not torch.equal(module()[3].weight, network[3].weight)


def test_hooks_go_when_training_fails():
    network = module()

    def fails(_):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        finetune(network, fails, keep=0.1)
    zero = network[0].weight.detach() == 0
    training(OPTIMIZERS[0])(network)
    assert network[0].weight[zero].any()


def test_names_that_the_module_does_not_have():
    with pytest.raises(UsageError, match="no parameter or buffer 'fc'"):
        finetune(module(), training(OPTIMIZERS[0]), hold=Hold(zeros=("fc",)))
    with pytest.raises(UsageError, match="'fc\\*'"):
        finetune(module(), training(OPTIMIZERS[0]), keep={"fc*": 0.1})
    with pytest.raises(UsageError, match="between 0 and 1"):
        prune(module(), 1.5)


def retrain(tensors, hold):
    """As a user writes it."""
    network = module()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    finetune(network, training(OPTIMIZERS[0]), hold, epochs=2)
    return network.state_dict()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("deepsz-nearzip", {"keep": 0.3}),
        ("deep-compression", {"keep": 0.3, "bits": 3}),
        ("weightless", {"keep": 0.2, "clusters": 4, "layers": "0.weight 3.weight"}),
    ],
)
def test_methods_retrain_through_it(method, options):
    tensors = {name: value.numpy().copy() for name, value in module().state_dict().items()}
    archive = nz.compress(tensors, method=method, options=options, retrain=retrain)
    restored = nz.decompress(archive)
    assert not np.array_equal(restored["0.bias"], tensors["0.bias"])
    if method == "deep-compression":
        weight = restored["0.weight"]
        assert np.unique(weight[weight != 0]).size <= 8
        assert (weight != 0).sum() == round(0.3 * weight.size)


# ---- pulling towards values ------------------------------------------------------------------------------------


def by_hand(optimizer, target, weight, batches):
    """The penalty written into the loss, in place of a hold."""
    network = module()
    made = optimizer(network.parameters())
    for x, y in batches:

        def closure(x=x, y=y):
            made.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss = loss + weight / 2 * sum(((dict(network.named_parameters())[n] - t) ** 2).sum() for n, t in target)
            loss.backward()
            return loss

        made.step(closure)
    return network


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, lambda p: torch.optim.LBFGS(p, 0.1, max_iter=4)])
def test_a_pull_is_a_quadratic_penalty(optimizer, with_closure):
    if not with_closure and optimizer not in OPTIMIZERS:
        return  # L-BFGS works with a closure only
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(32, 12, generator=generator), torch.arange(32) % 4) for _ in range(4)]
    target = [("0.weight", torch.zeros(16, 12)), ("3.bias", torch.ones(4))]
    network = module()
    made = optimizer(network.parameters())
    with holding(network, nz.Hold(near={name: t.numpy() for name, t in target}, weight=0.3)):
        for x, y in batches:

            def closure(x=x, y=y):
                made.zero_grad()
                loss = nn.functional.cross_entropy(network(x), y)
                loss.backward()
                return loss

            if with_closure:
                made.step(closure)
            else:
                closure()
                made.step()
    expected = by_hand(optimizer, target, 0.3, batches)
    # L-BFGS amplifies the roundings of two ways to add: 1e-6 after one step.
    tolerance = 2e-6 if optimizer in OPTIMIZERS else 2e-4
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, dict(expected.named_parameters())[name], atol=tolerance), name


def test_a_pull_counts_once_a_step_and_reaches_what_the_loss_does_not():
    layer = nn.Linear(2, 1, bias=False)
    unused = nn.Parameter(torch.tensor([4.0]))
    layer.register_parameter("unused", unused)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 3.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    hold = nz.Hold(near={"weight": np.ones((1, 2), np.float32), "unused": np.zeros(1, np.float32)}, weight=0.5)
    with holding(layer, hold):
        for _ in range(4):  # micro-batches
            (0.25 * layer(torch.ones(1, 2))).sum().backward()
        other.step()
        optimizer.step()
    # 2 - 0.1 (1 + 0.5 (2 - 1)), 3 - 0.1 (1 + 0.5 (3 - 1)), 4 - 0.1 * 0.5 * 4
    assert layer.weight[0].tolist() == pytest.approx([1.85, 2.8])
    assert unused.item() == pytest.approx(3.8)
    optimizer.zero_grad()
    optimizer.step()
    assert layer.weight[0].tolist() == pytest.approx([1.85, 2.8]), "nothing pulls afterwards"


def test_pulled_and_pruned_at_once():
    network = module()
    prune(network, 0.3)
    hold = nz.Hold(zeros=("0.weight",), near={"0.weight": np.ones((16, 12), np.float32)}, weight=1.0)
    finetune(network, training(OPTIMIZERS[0]), hold)
    assert (network[0].weight != 0).sum() == round(0.3 * 192)


def pulled(near):
    return finetune(module(), training(OPTIMIZERS[0]), nz.Hold(near=near, weight=1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nz.Hold(weight=-1), "from 0 on"),
        (lambda: nz.Hold(weight=float("nan")), "from 0 on"),
        (lambda: nz.Hold(weight=True), "from 0 on"),
        (lambda: nz.Hold(zeros=("a",), reshaped=("a",)), "'a' may change its shape"),
        (lambda: pulled({"x": np.ones(1)}), "no parameter 'x'"),
        (lambda: pulled({"3.bias": np.ones(2)}),
         r"'3\.bias' is \[4\], what it is pulled to \[2\]"),
    ],
)  # fmt: skip
def test_holds_that_mean_nothing_are_named(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_a_retraining_may_change_shapes_only_where_it_is_told_so():
    tensors = {"a": np.ones((4, 3), np.float32), "b": np.ones(4, np.float32)}

    def thinner(arrays, hold):
        return {"a": arrays["a"][:2], "b": arrays["b"]}

    found = retrained(thinner, tensors, nz.Hold(frozen=("b",), reshaped=("a",)))
    assert found["a"].shape == (2, 3)
    with pytest.raises(UsageError, match=r"tensor 'a' as float32 \[2, 3\]; it was float32 \[4, 3\]"):
        retrained(thinner, tensors, nz.Hold())
    with pytest.raises(UsageError, match="tensor 'a' as float64"):
        retrained(lambda arrays, hold: {**arrays, "a": np.ones((2, 3))}, tensors, nz.Hold(reshaped=("a",)))
