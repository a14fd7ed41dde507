"""Error feedback: gradients of M*, updates of M, whatever the loop looks like."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import nearzip as nz
from nearzip import errors
from nearzip.torch import ErrorFeedback, capture, restore
from nearzip.torch.quantizers import grid, quantizer, range_quantizer, recipe_quantizer
from tests.training.small import small_model, train


def coarse(values):
    """A quantizer that anyone can check: to quarters."""
    return {name: torch.round(value * 4) / 4 for name, value in values.items()}


def by_hand(model, optimizer, batches, update="original"):
    """Algorithm 1 written out."""
    for micro_batches in batches:
        originals = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.round(p * 4) / 4)
        optimizer.zero_grad()
        for x, y in micro_batches:
            nn.functional.cross_entropy(model(x), y).backward()
        if update == "original":
            with torch.no_grad():
                for p, original in zip(model.parameters(), originals, strict=True):
                    p.copy_(original)
        optimizer.step()


def some_batches(n=6, micro=1):
    g = torch.Generator().manual_seed(1)
    return [
        [(torch.randn(8, 4, generator=g), torch.randint(0, 2, (8,), generator=g)) for _ in range(micro)]
        for _ in range(n)
    ]


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("update", ["original", "restored"])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("style", ["loop", "closure", "scaler"])
def test_algorithm_1(update, micro, style):
    expected, model = plain_model(), plain_model()
    by_hand(expected, optim.SGD(expected.parameters(), 0.5), some_batches(micro=micro), update)
    optimizer = optim.SGD(model.parameters(), 0.5)
    feedback = ErrorFeedback(model, optimizer, quantize=coarse, update=update)
    scaler = torch.amp.GradScaler("cpu", enabled=style == "scaler", init_scale=8.0)
    for micro_batches in some_batches(micro=micro):

        def closure(micro_batches=micro_batches):
            optimizer.zero_grad()
            for x, y in micro_batches:
                loss = nn.functional.cross_entropy(model(x), y)
                (scaler.scale(loss) if style == "scaler" else loss).backward()

        if style == "closure":
            optimizer.step(closure)
        else:
            closure()
            scaler.step(optimizer) if style == "scaler" else optimizer.step()
            scaler.update() if style == "scaler" else None
    feedback.close()
    for a, b in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert feedback.seconds > 0


def test_a_skipped_step_keeps_the_original():
    model = plain_model()
    optimizer = optim.SGD(model.parameters(), 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ErrorFeedback(model, optimizer, quantize=coarse)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.full((2, 4), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_is_the_original_and_the_model_the_restored():
    model = plain_model()
    weight = model[0].weight.detach().clone()
    feedback = ErrorFeedback(model, optim.SGD(model.parameters(), 0.5), quantize=coarse)
    model(torch.zeros(1, 4))
    assert torch.equal(model[0].weight, torch.round(weight * 4) / 4)
    assert torch.equal(model.state_dict()["0.weight"], weight)
    with feedback.original():
        model(torch.zeros(1, 4))
        assert torch.equal(model[0].weight, weight)
    model(torch.zeros(1, 4))
    assert not torch.equal(model[0].weight, weight)
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    feedback.use_original()
    assert torch.equal(model[0].weight, weight + 1)
    feedback.close()
    model(torch.zeros(1, 4))
    assert torch.equal(model[0].weight, weight + 1)


def test_resume_in_the_middle_is_the_same_training():
    def begin():
        model = small_model(0)
        optimizer = optim.Adam(model.parameters(), 1e-2)
        return model, optimizer, ErrorFeedback(model, optimizer, options={"b_min": 4, "b_max": 4})

    model, optimizer, _ = begin()
    train(model, optimizer, None, 4)
    model(torch.randn(3, 4))
    state = capture(model, optimizer)
    saved = {name: torch.as_tensor(value).clone() for name, value in state.tensors.items() if "rng" not in name}
    state.tensors.update(saved)
    train(model, optimizer, None, 4)
    other, other_optimizer, _ = begin()
    restore(state, other, other_optimizer)
    train(other, other_optimizer, None, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


#: What torch.compile itself warns of when it is first used.
_COMPILING = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@_COMPILING
def test_compiled_networks_are_refused():
    model = plain_model()
    optimizer = optim.SGD(model.parameters(), 0.5)
    with pytest.raises(errors.UsageError, match=r"does not work under torch\.compile"):
        ErrorFeedback(torch.compile(model), optimizer)
    model.compile()
    with pytest.raises(errors.UsageError, match=r"does not work under torch\.compile"):
        ErrorFeedback(model, optimizer)
    with pytest.raises(errors.UsageError, match="'original' or 'restored'"):
        ErrorFeedback(plain_model(), optimizer, update="both")


@_COMPILING
def test_compiling_afterwards_changes_nothing():
    """The hook breaks the graph, so that the compiled parts see M*; what is refused is what we could not keep."""
    expected, model = plain_model(), plain_model()
    by_hand(expected, optim.SGD(expected.parameters(), 0.5), some_batches())
    optimizer = optim.SGD(model.parameters(), 0.5)
    ErrorFeedback(model, optimizer, quantize=coarse)
    compiled = torch.compile(model, backend="eager")
    for ((x, y),) in some_batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    for a, b in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- quantizers ------------------------------------------------------------------------------------------------


def test_range_quantizer_follows_the_equations():
    torch.manual_seed(0)
    w = torch.randn(50, 20)
    out = range_quantizer(4, 4)({"w": w, "c": torch.full((3,), 0.3), "e": torch.ones(0), "h": w.half()})
    scale = (w.max() - w.min()) / 15
    assert torch.unique(out["w"]).numel() <= 16
    assert (out["w"] - w).abs().max() <= scale / 2 * 1.001
    assert torch.isclose(out["w"].min(), w.min())
    assert torch.equal(out["c"], torch.full((3,), 0.3))
    assert out["e"].shape == (0,)
    assert out["h"].dtype == torch.float16
    with pytest.raises(errors.UsageError, match="bit widths"):
        range_quantizer(9, 8)


def test_grid_is_what_nearzip_restores_up_to_its_margin():
    torch.manual_seed(0)
    base = {"w": torch.randn(40, 30)}
    w = {"w": base["w"] + 0.01 * torch.randn(40, 30)}
    ours = grid(nz.Absolute(1e-3), base)(w)["w"]
    assert (ours - w["w"]).abs().max() <= 1e-3 * 1.001
    exact = recipe_quantizer("nearzip", nz.Absolute(1e-3), None, base)(w)["w"]
    # The codec's step leaves a thousandth of room for rounding.
    assert (ours - exact).abs().max() <= 2.1e-3
    assert ((ours - exact).abs() < 1e-4).float().mean() > 0.9


def test_any_method_can_be_fed_back():
    model = plain_model()
    optimizer = optim.SGD(model.parameters(), 0.1)
    feedback = ErrorFeedback(model, optimizer, "delta-dnn", bound=nz.Absolute(0.1))
    train(model, optimizer, None, 3)
    with torch.no_grad():
        model(torch.zeros(1, 4))
    restored = model[0].weight.detach().clone()
    feedback.use_original()
    assert 0 < (model[0].weight - restored).abs().max() <= 0.1


@pytest.mark.parametrize("options", [{"bits": 4}, {"b_min": 8, "b_max": 8}, {"b_min": 3, "b_max": 9}, {}])
def test_the_fast_way_is_the_recipe_bit_for_bit(options):
    torch.manual_seed(0)
    w = {"a": torch.randn(300, 200) / 20, "b": torch.randn(200), "c": torch.randn(64, 3, 3, 3) / 5}
    fast = quantizer("qd-compressor", None, options)(w)
    slow = recipe_quantizer("qd-compressor", None, options, None)(w)
    assert all(torch.equal(fast[name], slow[name]) for name in w)
