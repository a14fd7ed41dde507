"""Error feedback: gradients of M*, updates of M, whatever the loop looks like."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import nearzip as nz
from nearzip import errors
from nearzip.network.arrays import to_torch
from nearzip.torch import ErrorFeedback, Saver, capture, restore
from nearzip.torch.quantizers import quantizer, range_quantizer, recipe_quantizer
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


# ---- what is trained on is what a reader restores ----------------------------------------------------------------

#: Every method, with bounds and options that lose something.
_CODINGS = [
    ("qd-compressor", None, {}),
    ("qd-compressor", None, {"bits": 4}),
    ("qd-compressor", None, {"b_min": 2, "b_max": 11, "backend": "zstd"}),
    ("qd-compressor", None, {"variant": "global"}),
    ("qd-compressor", None, {"variant": "delta-first", "bits": 5}),
    ("nearzip", "abs:1e-3", {}),
    ("nearzip", "abs:0.05", {"finer": 1.0}),
    ("nearzip", "rms:0.1", {}),
    ("nearzip", "pwrel:0.05", {}),
    ("nearzip", None, {"step": 0.01, "unbiased": True}),
    ("delta-dnn", "abs:0.01", {}),
    ("delta-dnn", None, {"mode": "relative", "eps": 0.05}),
    ("lc-checkpoint", None, {}),
    ("topk", None, {}),
    ("stc", None, {}),
    ("sbc", None, {}),
    ("qsgd", None, {}),
    ("deepsz", None, {}),
    ("deep-compression", None, {}),
    ("weightless", None, {}),
    ("sz3", "abs:1e-3", {}),
    ("zfp", "abs:1e-3", {}),
]


class _Odd(nn.Module):
    """Batch norm, small and constant tensors, one tensor under two names, one that is frozen, two dtypes."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.filters = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 20)
        self.tied = nn.Linear(8, 20, bias=False)
        self.tied.weight = self.head.weight
        self.frozen = nn.Parameter(torch.full((5,), 0.25), requires_grad=False)
        self.wide = nn.Parameter(torch.randn(40, 30, dtype=torch.float64) / 10)
        self.narrow = nn.Parameter((torch.randn(40, 30) / 10).to([torch.float16, torch.bfloat16][seed % 2]))
        self.register_buffer("table", torch.randn(64, 16) * 3)

    def forward(self, x):
        pooled = self.norm(self.filters(x)).relu().mean((2, 3))
        return self.head(pooled) + self.tied(pooled) * self.wide.mean().float() * self.narrow.float().mean()


def _forward_and_step(model, optimizer):
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _is_installed(method: str) -> bool:
    try:
        nz.compress({"w": torch.randn(64, 64)}, method=method)
    except errors.MissingExtraError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(("method", "bound", "options"), _CODINGS, ids=str)
def test_what_is_trained_on_is_what_a_reader_restores(method, bound, options, with_base):
    if not _is_installed(method):
        pytest.skip(f"{method} is not installed")
    for seed in range(3):
        model = _Odd(seed)
        base = {n: v.detach().clone() for n, v in _Odd(seed).state_dict().items()} if with_base else None
        optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
        feedback = ErrorFeedback(model, optimizer, method, bound=bound, options=options, base=base)
        for _ in range(3):
            _forward_and_step(model, optimizer)
            archive = nz.compress(model.state_dict(), base, method, bound, options=options)
            feedback.use_restored()
            read = nz.decompress(archive.to_bytes(), base)
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter.detach(), to_torch(read[name])), name
            if seed < 2:
                # Buffers change in a forward pass; what the next one trains on is the snapshot of then.
                feedback.use_original()


@pytest.mark.parametrize("options", [{}, {"bits": 6}, {"b_min": 2, "b_max": 12}])
def test_the_fast_way_is_the_recipe_on_random_networks(options):
    """Scales from 1e-30 to 1e6, sizes from one value on, and values that are not finite."""
    g, dtypes = torch.Generator().manual_seed(5), (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    fast, slow = quantizer("qd-compressor", None, options), recipe_quantizer("qd-compressor", None, options, None)
    for trial in range(40):
        network = {}
        for i in range(int(torch.randint(1, 6, (), generator=g))):
            shape = tuple(int(n) for n in torch.randint(1, 30, (2,), generator=g))
            scale = 10 ** float(torch.randint(-30, 7, (), generator=g))
            dtype = dtypes[int(torch.randint(0, 4, (), generator=g))]
            scale = min(max(scale, 1e-3), 100.0) if dtype == torch.float16 else scale
            shift = float(torch.randn((), generator=g)) * scale
            network[f"t{i}"] = (torch.randn(shape, generator=g) * scale + shift).to(dtype)
        network["steps"] = torch.tensor(3)
        if trial % 5 == 4:
            network["t0"].view(-1)[0] = [float("nan"), float("inf")][trial % 2]
        ours, theirs = fast(network), slow(network)
        for name in network:
            assert torch.equal(ours[name].nan_to_num(7.0), theirs[name].nan_to_num(7.0)), (trial, name)


@pytest.mark.parametrize(
    ("method", "bound"), [("qd-compressor", None), ("nearzip", "abs:0.01"), ("nearzip", "rms:0.2")]
)
def test_what_is_trained_on_is_what_a_saver_restores(tmp_path, method, bound):
    model = _Odd(0)
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    # nearzip's next versions are steps from the one before, which the training does not know.
    n_versions = 3 if method == "qd-compressor" else 1
    with Saver(tmp_path / "run", method=method, bound=bound) as saver:
        feedback = ErrorFeedback(model, optimizer, saver=saver)
        for step in range(n_versions):
            _forward_and_step(model, optimizer)
            saver.save(model, optimizer, step=step)
            saver.wait()
            read = saver.store.checkout()
            feedback.use_restored()
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter.detach(), to_torch(read[f"model/{name}"])), name
        with pytest.raises(errors.UsageError, match="a saver has a method"):
            ErrorFeedback(model, optimizer, "qd-compressor", saver=saver)
