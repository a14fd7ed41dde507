"""Calibrated archives: smaller or nearer than plain ones, bounds kept, and what cannot be calibrated said."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import nearzip as nz
from nearzip import calibrate
from nearzip.calibrate.largest_step import largest_step
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.steps import Cost, Steps
from nearzip.errors import BudgetError, UsageError
from tests.calibrate.networks import Attention, Tied, Turned, convolutions, images, words


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def moved(module: nn.Module, size: float = 0.01) -> nn.Module:
    """The next version: every weight a little elsewhere."""
    generator = torch.Generator().manual_seed(9)
    newer = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return newer


def divergence(module: nn.Module, batches, tensors) -> float:
    predictor = Predictor(module.eval(), batches, None, "logits")
    with torch.no_grad():
        originals = [predictor.predictions(batch) for batch in predictor.batches]
        return predictor.mean_divergence(
            originals, predictor.batches, {n: torch.from_numpy(a) for n, a in tensors.items()}
        )


def trained(inputs: int = 24, classes: int = 8) -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """A network with inputs that hang together, batches to calibrate with, and others to judge by."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, classes))
    mixing = torch.randn(6, inputs)
    batches = [torch.randn(128, 6) @ mixing + 0.1 * torch.randn(128, inputs) for _ in range(8)]
    return module, batches[:4], batches[4:]


NETWORKS = {
    **{name: (module, images(shape)) for name, (module, shape) in convolutions().items()},
    "attention": (Attention(), words()),
    "cross-attention": (Attention(cross=True), words()),
    "tied": (Tied(), words()),
    "turned": (Turned(), [torch.randn(30, 8) for _ in range(3)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_layer_comes_back_from_its_bytes(name):
    module, batches = NETWORKS[name]
    base = arrays(module)
    newer = moved(module)
    archive = calibrate.compress(newer, batches, base, step=0.004, threads=1)
    restored = nz.decompress(archive.to_bytes(), base=base)
    original = arrays(newer)
    assert set(restored) == set(original)
    for tensor, value in restored.items():
        assert value.tobytes() == archive.restored[tensor].tobytes()
        assert (value.dtype, value.shape) == (original[tensor].dtype, original[tensor].shape)
        if value.dtype == np.float32 and value.size:
            assert np.abs(value - original[tensor]).max() < 0.1
    newer.load_state_dict({tensor: torch.from_numpy(value) for tensor, value in restored.items()})
    assert archive.report.divergence < 0.01


def test_calibrated_answers_are_nearer_than_rounded_ones():
    module, batches, others = trained()
    newer, base = moved(module, 0.02), arrays(module)
    found = {}
    for step in (0.01, 0.02, 0.04, 0.08):
        archive = calibrate.compress(newer, batches, base, step=step, threads=1)
        found[archive.nbytes] = divergence(newer, others, archive.restored)
    plain = nz.compress(arrays(newer), base, bound=nz.Absolute(0.01))
    kl = divergence(newer, others, plain.restored)
    assert any(size < plain.nbytes and near < kl / 2 for size, near in found.items()), (found, plain.nbytes, kl)


@pytest.mark.parametrize("bound", [nz.Absolute(0.01), nz.Relative(0.01), nz.Rms(0.1)], ids=str)
@pytest.mark.parametrize("step", [None, 0.004, 0.5])
def test_a_bound_is_kept_against_the_original(bound, step):
    module, batches, _ = trained()
    newer, base = moved(module, 0.05), arrays(module)
    archive = calibrate.compress(newer, batches, base, bound=bound, step=step, threads=1)
    restored, original = nz.decompress(archive.to_bytes(), base=base), arrays(newer)
    for name, value in original.items():
        tolerance = bound.tolerance(nz.bounds.Statistics.of(value))
        assert not nz.bounds.violations(value.ravel(), restored[name].ravel(), tolerance).size, name
    assert archive.report.index.bound["kind"] == bound.key


def test_without_a_bound_nothing_is_promised_and_the_file_says_so():
    module, batches, _ = trained()
    archive = calibrate.compress(module, batches, step=0.01, threads=1)
    assert archive.report.index.bound == {"kind": "no promise"}
    assert archive.report.n_patched == 0


def test_a_divergence_is_kept_on_the_batches_held_back():
    module, batches, _ = trained()
    newer, base = moved(module, 0.05), arrays(module)
    sizes = []
    for kl in (1e-5, 1e-3):
        archive = calibrate.compress(newer, batches, base, kl=kl, threads=1)
        assert kl / 4 < archive.report.divergence <= kl
        assert divergence(newer, batches[-1:], archive.restored) == pytest.approx(archive.report.divergence, rel=1e-3)
        sizes.append(archive.nbytes)
    assert sizes[0] > sizes[1]


def test_what_is_not_calibrated_is_said():
    module, batches = NETWORKS["turned"]
    archive = calibrate.compress(module, batches, step=0.01, threads=1)
    assert archive.report.uncalibrated == {
        "unused.weight": "not used by the batches",
        "product": "used in a way that is not known",
    }
    far = copy.deepcopy(module)
    with torch.no_grad():
        far.h.weight[0, 0] = 3e6
        far.unused.weight[0, 0] = float("nan")
        far.unused.weight[0, 1] = float("inf")
    archive = calibrate.compress(far, batches, step=0.01, threads=1)
    assert archive.report.uncalibrated["h.weight"].startswith("too far from its base")
    assert archive.report.uncalibrated["unused.weight"] == "not finite"
    assert np.isnan(archive.restored["unused.weight"][0, 0])
    assert np.isinf(archive.restored["unused.weight"][0, 1])


def test_tied_weights_stay_tied():
    module = Tied()
    archive = calibrate.compress(module, words(), step=0.01, threads=1)
    assert archive.report.index.aliases == {"h.weight": "e.weight"}
    assert np.array_equal(archive.restored["h.weight"], archive.restored["e.weight"])
    assert not np.shares_memory(archive.restored["h.weight"], archive.restored["e.weight"])


def test_tensors_that_are_equal_may_be_rounded_apart():
    """Two biases of zeros are stored once, but not when they were tuned apart."""
    module, batches, _ = trained()
    with torch.no_grad():
        module[0].bias.zero_()
        module[2].bias.zero_()
    archive = calibrate.compress(module, batches, step=0.2, threads=1)
    restored = nz.decompress(archive.to_bytes())
    assert all(np.array_equal(restored[name], value) for name, value in archive.restored.items())
    assert not np.array_equal(restored["0.bias"], restored["2.bias"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    module, batches, _ = trained()
    module, newer = module.to(dtype), moved(module, 0.02).to(dtype)
    base = nz.compress(dict(module.state_dict())).restored
    batches = [batch.to(dtype) for batch in batches]
    archive = calibrate.compress(newer, batches, base, step=0.02, threads=1)
    restored = nz.decompress(archive.to_bytes(), base=base)
    assert all(restored[name].tobytes() == value.tobytes() for name, value in archive.restored.items())
    assert archive.report.divergence < 0.05
    assert archive.nbytes < nz.compress(dict(newer.state_dict()), base).nbytes


class Tempered(nn.Module):
    """With a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.temperature = nn.Linear(24, 8), nn.Parameter(torch.tensor(1.7))

    def forward(self, x):
        return self.linear(x) * self.temperature


@pytest.mark.parametrize("bound", [None, "abs:0.05"])
def test_a_parameter_without_dimensions(bound):
    torch.manual_seed(0)
    module, batches = Tempered(), [torch.randn(32, 24) for _ in range(4)]
    archive = calibrate.compress(module, batches, step=0.1, bound=bound)
    found = archive.restored["temperature"]
    assert found.shape == ()
    assert abs(float(found) - 1.7) <= 0.05


def test_a_bound_in_bfloat16():
    module, batches, _ = trained()
    module = module.to(torch.bfloat16)
    archive = calibrate.compress(module, [b.to(torch.bfloat16) for b in batches], bound="abs:0.01", threads=1)
    for name, value in nz.compress(dict(module.state_dict())).restored.items():
        error = np.abs(archive.restored[name].astype(np.float64) - value.astype(np.float64))
        assert error.max() <= 0.01


def test_of_a_loader_the_first_batches_are_taken():
    module, batches, _ = trained()

    def forever():
        while True:
            yield batches[0], None

    seen = []
    archive = calibrate.compress(
        module, forever(), step=0.01, n_batches=2, threads=1, progress=lambda *p: seen.append(p)
    )
    assert archive.report.divergence < 0.01
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_progress_of_a_file_with_its_restored_twin_never_goes_back(tmp_path):
    module, batches, _ = trained()
    save_file(arrays(module), tmp_path / "net.safetensors")
    seen = []
    calibrate.compress_file(
        tmp_path / "net.safetensors",
        tmp_path / "net.nzip",
        module=module,
        batches=batches,
        step=0.01,
        restored=tmp_path / "restored.safetensors",
        threads=1,
        progress=lambda *p: seen.append(p),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_step_that_breaks_the_network_is_measured_as_such():
    module = nn.Sequential(nn.Linear(24, 8), nn.Linear(8, 4)).half()
    with torch.no_grad():
        module[0].weight.mul_(1e4)
    x = [torch.full((4, 24), 0.2).half() for _ in range(2)]
    archive = calibrate.compress(module, x, step=4e4, threads=1)
    assert archive.report.divergence > 0


def test_a_base_of_other_kinds_is_used_where_it_fits():
    module, batches, _ = trained()
    base = arrays(module)
    base["0.weight"] = base["0.weight"][:, :5].copy()
    del base["2.weight"]
    archive = calibrate.compress(moved(module), batches, base, step=0.01, threads=1)
    restored = nz.decompress(archive.to_bytes(), base=base)
    assert set(archive.report.without_base) == {"0.weight", "2.weight"}
    assert all(np.array_equal(restored[name], value) for name, value in archive.restored.items())


def test_a_base_of_other_names_and_precisions_is_used():
    module, batches, _ = trained()
    base = {f"_orig_mod.{name}": value for name, value in arrays(module).items()}
    base["_orig_mod.0.weight"] = base["_orig_mod.0.weight"].astype(np.float16)
    for how in ({"step": 0.01}, {"step": 0.01, "bound": "upd:0.5"}):
        archive = calibrate.compress(moved(module), batches, base, threads=1, **how)
        restored = nz.decompress(archive.to_bytes(), base=base)
        assert archive.report.without_base == {}
        assert archive.report.matches["0.weight"].dtype == "float16"
        assert all(np.array_equal(restored[name], value) for name, value in archive.restored.items())


def test_threads_do_not_change_the_bytes():
    module, batches, _ = trained()
    one, two = (calibrate.compress(module, batches, step=0.01, threads=n).to_bytes() for n in (1, 2))
    assert one == two


def test_decoding_needs_no_torch(tmp_path):
    module, batches, _ = trained()
    calibrate.compress(module, batches, step=0.01, threads=1).save(tmp_path / "a.nz")
    code = "import sys; sys.modules['torch'] = None; import nearzip as nz; print(len(nz.decompress(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.nz"], capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "how far to go"),
        ({"step": 0.1, "kl": 0.1}, "not both"),
        ({"step": 0}, "step is positive"),
        ({"step": "x"}, "step is positive"),
        ({"kl": float("nan")}, "kl is positive"),
        ({"bound": nz.Lossless()}, "not lossless"),
        ({"bound": "pwrel:0.1"}, "not pwrel:0.1"),
        ({"bound": "abs:x"}, "cannot read"),
        ({"step": 0.1, "output": "x"}, "output is"),
        ({"step": 0.1, "threads": 0}, "threads is"),
        ({"step": 0.1, "n_batches": 0}, "n_batches is"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, says):
    module, batches, _ = trained()
    with pytest.raises(UsageError, match=says):
        calibrate.compress(module, batches, **settings)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_damping_is_positive(value):
    with pytest.raises(UsageError, match="damping"):
        calibrate.Damping(inputs=value)
    with pytest.raises(UsageError, match="damping"):
        calibrate.Damping(gradients=value)


def test_public_names():
    names = {"Calibration", "Damping", "RateLimit", "compress", "compress_file", "rate_limit", "tune"}
    assert set(calibrate.__all__) == names


# ---- steps and their search ------------------------------------------------------------------------------------


def test_steps_follow_the_cost():
    costs = {"cheap": Cost(0.0, 100, True), "dear": Cost(4.0, 100, True), "bias": Cost(20.0, 5, False),
             "slack": Cost(-20.0, 5, False), "buffer": Cost(None, 5, False)}  # fmt: skip
    steps = Steps(costs)
    found = {name: steps.of(name, 0.1) for name in costs}
    # s^2 c is the same for both: e^4 apart in cost, e^2 in step, up to the grid.
    assert found["cheap"] / found["dear"] == pytest.approx(np.exp(2), rel=0.3)
    assert found["bias"] == 0.1 / 32
    assert found["slack"] == 0.1
    assert found["buffer"] == 0.1 / 8
    assert steps.divergence(steps.for_divergence(1e-3)) == pytest.approx(1e-3)
    assert Steps({"buffer": Cost(None, 5, False)}).for_divergence(1e-3) is None


@pytest.mark.parametrize("first", [1e-6, 0.01, 1.0, 1e4])
def test_the_search_ends_near_its_target(first):
    tried = []

    def attempt(step: float) -> float:
        tried.append(step)
        return step**1.7 if step < 10 else float("inf")

    step, found = largest_step(first, 1e-3, attempt, lambda kl: kl)
    assert 0.9e-3 <= found <= 1e-3
    assert step in tried
    assert len(tried) <= 10


def test_a_target_out_of_reach_is_said():
    with pytest.raises(BudgetError, match=r"0\.5 is what was reached"):
        largest_step(1.0, 1e-3, lambda step: 0.5, lambda kl: kl)


def test_a_target_that_is_always_kept_ends_the_search():
    step, found = largest_step(1.0, 1e-3, lambda step: 1e-9, lambda kl: kl)
    assert step > 1
    assert found == 1e-9


def test_a_calibration_is_one_value_and_its_fields_stay_accepted():
    network, shape = convolutions()["conv1d"]
    batches = images(shape)
    how = calibrate.Calibration(n_batches=2, damping=calibrate.Damping(0.2, 0.2), fit_biases=False)
    archive = calibrate.compress(network, batches, step=0.02, calibration=how)
    separate = {"n_batches": 2, "damping": calibrate.Damping(0.2, 0.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate.compress(network, batches, step=0.02, **separate, fit_biases=False).id == archive.id
    with pytest.warns(DeprecationWarning, match=r"compress: tune= is now called fit_biases="):
        assert calibrate.compress(network, batches, step=0.02, **separate, tune=False).id == archive.id
    assert calibrate.compress(network, batches, step=0.02, **separate).id != archive.id
    with pytest.raises(UsageError, match="calibration= or n_batches=, not both"):
        calibrate.compress(network, batches, step=0.02, calibration=how, n_batches=3)
    with pytest.raises(UsageError, match=r"takes a nearzip\.calibrate\.Calibration"):
        calibrate.compress(network, batches, step=0.02, calibration={"n_batches": 3})
    with pytest.raises(TypeError, match=r"compress\(\) got an unexpected keyword argument 'batch'"):
        calibrate.compress(network, batches, step=0.02, batch=3)


def test_rename_names_the_base_of_a_tensor_that_is_called_otherwise(tmp_path) -> None:
    module, batches, _ = trained()
    newer, old = moved(module), arrays(module)
    # No name speaks for either, and both have the shape.
    base = {"first" + name[1:] if name.startswith("2.") else name: array for name, array in old.items()}
    base["second.weight"] = np.zeros_like(old["2.weight"])
    rename = {"first.": "2."}
    expected = calibrate.compress(newer, batches, old, step=0.001)
    archive = calibrate.compress(newer, batches, base, step=0.001, rename=rename)
    assert archive.nbytes < 1.05 * expected.nbytes + 500
    tensors = nz.decompress(expected.to_bytes(), base=old)
    found = nz.decompress(archive.to_bytes(), base=base)
    assert all(found[name].tobytes() == array.tobytes() for name, array in tensors.items())
    save_file(arrays(newer), tmp_path / "new.safetensors")
    save_file(base, tmp_path / "old.safetensors")
    files = [tmp_path / name for name in ("new.safetensors", "out.nz")]
    calibrate.compress_file(*files, newer, batches, tmp_path / "old.safetensors", step=0.001, rename=rename)
    restored = nz.decompress(tmp_path / "out.nz", base=base)
    assert all(restored[name].tobytes() == array.tobytes() for name, array in tensors.items())
    with pytest.raises(UsageError, match="give a base"):
        calibrate.compress(newer, batches, step=0.001, rename=rename)
