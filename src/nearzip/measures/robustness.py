"""Accuracy on perturbed inputs: adversarial, random and benign."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzip.budget.intervals import Statistic
from nearzip.errors import UsageError, missing_extra
from nearzip.measures.inputs import first_rows, inputs_of, one_prediction_a_row, real_inputs_of, with_inputs
from nearzip.measures.measure import Measure, Predictions, Units, check_counts

__all__ = ["PERTURBATIONS", "Robustness"]

#: What is measured unless it is named; "linf:2" moves each pixel by at most 2/255.
PERTURBATIONS = (
    "linf:1", "linf:2", "transfer:2", "gauss:0.04", "gauss:0.08", "shift:2", "brightness:0.15", "contrast:0.75",
    "blur:0.7", "jpeg:50",
)  # fmt: skip
_KINDS = ("linf", "transfer", "gauss", "shift", "brightness", "contrast", "blur", "jpeg")
#: They need pictures: channels, height, width.
_OF_PICTURES = ("shift", "contrast", "blur", "jpeg")
_STEPS = 10


class Robustness(Measure):
    """Accuracy on perturbed inputs, against the truth: "robust/linf:2", "robust/gauss:0.04", ..

    ===================  =====================================================================================
    perturbation         what is done to an input, pixels from 0 to 1
    ===================  =====================================================================================
    "linf:2"             adversarial: ten steps of projected gradient descent within 2/255 (foolbox), against the
                         network that is measured
    "transfer:2"         the same, found against the original and given to both. Accuracy that rises here and not
                         under "linf" points to masked gradients
    "gauss:0.04"         noise of this standard deviation
    "shift:2"            by so many pixels to the right and down, edges repeated
    "brightness:0.15"    brighter and darker in turn by this much
    "contrast:0.75"      contrast times this
    "blur:0.7"           Gaussian blur of this many pixels
    "jpeg:50"            JPEG of this quality (Pillow)
    ===================  =====================================================================================

    Parameters
    ----------
    perturbations : sequence of str
        Default: those of `PERTURBATIONS` that the inputs allow; JPEG only where Pillow is installed.
    mean, std : sequence of float or float
        By channel, where the network's inputs are (pixels - mean) / std.
    bounds : (float, float) or None
        Of pixels; perturbed ones are clipped to it. None: inputs that are no pixels are not clipped.
    n, seed : int
        The first so many samples; the seed of the noise.
    """

    needs_targets = needs_original = needs_classes = needs_gradients = trainable = True

    def __init__(
        self, perturbations: Sequence[str] | None = None, *, mean: Any = 0.0, std: Any = 1.0,
        bounds: tuple[float, float] | None = (0.0, 1.0), n: int = 500, seed: int = 0,
    ):  # fmt: skip
        if perturbations is not None and (isinstance(perturbations, str) or not perturbations):
            raise UsageError(f"perturbations are a list such as ['linf:2', 'gauss:0.04'], not {perturbations!r}")
        self.perturbations = None if perturbations is None else tuple(map(_checked, perturbations))
        check_counts("robustness", n=n)
        if not bool((torch.as_tensor(std) > 0).all()):
            raise UsageError(f"std of robustness is positive, by channel or for all of them, not {std!r}")
        if bounds is not None and not bounds[0] < bounds[1]:
            raise UsageError(f"bounds of robustness are the smallest and the largest pixel value, not {bounds!r}")
        self.mean, self.std, self.bounds, self.n, self.seed = mean, std, bounds, n, seed
        self.reset()

    def reset(self) -> None:
        self._units: dict[str, Units] = {}
        self._n_seen = 0

    def __repr__(self) -> str:
        return "robust" if self.perturbations is None else ", ".join(f"robust/{name}" for name in self.perturbations)

    @property
    def identity(self) -> str:
        return f"{self} {self.mean} {self.std} {self.bounds} {self.n} {self.seed}"

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        assert batch.network is not None
        assert batch.targets is not None
        rows = min(self.n - self._n_seen, one_prediction_a_row(batch, str(self)))
        if rows <= 0:
            return
        cut, targets = first_rows(batch, rows), batch.targets[:rows]
        first, self._n_seen = self._n_seen, self._n_seen + rows
        for name in self._wanted(inputs_of(cut)):
            if name.startswith("linf") and batch.network is not batch.reference:
                perturbed = self._inputs(name, batch.network, cut, targets, first)
            else:
                make = partial(self._inputs, name, batch.reference, cut, targets, first)
                perturbed = batch.once(f"{name.replace('transfer', 'linf')} {self.identity}", make)
            with torch.no_grad():
                classes = _classes(batch.network(with_inputs(cut, perturbed)))
            self._units.setdefault(name, Units()).add(batch.units[:rows], classes == targets)

    def result(self) -> dict[str, Statistic | float]:
        return {f"robust/{name}": units.mean() for name, units in self._units.items()}

    def loss(self, batch: Predictions) -> Tensor:
        """KL(original || trained) on perturbed inputs, mean over the perturbations that have no attack."""
        assert batch.network is not None
        assert batch.reference is not None
        rows = min(self.n, one_prediction_a_row(batch, str(self)))
        cut = first_rows(batch, rows)
        wanted = [name for name in self._wanted(inputs_of(cut)) if not name.startswith(("linf", "transfer"))]
        if not wanted:
            raise UsageError("training for robustness takes perturbations such as 'gauss:0.04', not attacks")
        found = []
        for name in wanted:
            there = with_inputs(cut, self._inputs(name, batch.reference, cut, batch.classes[:rows], 0))
            with torch.no_grad():
                theirs = functional.log_softmax(batch.reference(there), -1)
            own = functional.log_softmax(batch.network(there), -1)
            found.append(functional.kl_div(own, theirs, reduction="batchmean", log_target=True))
        return torch.stack(found).mean()

    def _wanted(self, inputs: Tensor) -> tuple[str, ...]:
        if self.perturbations is not None:
            if inputs.dim() != 4 and any(name.startswith(_OF_PICTURES) for name in self.perturbations):
                raise UsageError("shift, contrast, blur and jpeg need pictures: batch, channels, height, width")
            return self.perturbations
        possible = (
            PERTURBATIONS
            if inputs.dim() == 4
            else tuple(name for name in PERTURBATIONS if not name.startswith(_OF_PICTURES))
        )
        return tuple(name for name in possible if not name.startswith("jpeg") or _has_pillow(inputs))

    def _inputs(self, name: str, network: Any, batch: Any, targets: Tensor, first: int) -> Tensor:
        """Perturbed inputs of a batch, in the network's units."""
        inputs = real_inputs_of(batch, "robustness").detach()
        kind, _, text = name.partition(":")
        size = float(text)
        mean, std = (self._by_channel(value, inputs) for value in (self.mean, self.std))
        pixels = inputs * std + mean
        if self.bounds is not None:
            self._check_range(pixels)
            pixels = pixels.clamp(*self.bounds)
        if kind in ("linf", "transfer"):
            moved = _attacked(network, batch, pixels, targets, size / 255, mean, std, self.bounds)
        elif kind == "gauss":
            moved = pixels + size * self._noise(pixels, first)
        else:
            moved = _BENIGN[kind](pixels, size)
        if self.bounds is not None:
            moved = moved.clamp(*self.bounds)
        return (moved - mean) / std

    def _by_channel(self, value: Any, inputs: Tensor) -> Tensor:
        found = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
        if found.dim() and len(found) not in (1, inputs.shape[1]):
            raise UsageError(f"mean and std of robustness have {len(found)} channels, the inputs {inputs.shape[1]}")
        return found.view(1, -1, *[1] * (inputs.dim() - 2)) if found.dim() else found

    def _check_range(self, pixels: Tensor) -> None:
        assert self.bounds is not None
        low, high = self.bounds
        slack = 1e-3 * (high - low)
        if float(pixels.min()) < low - slack or float(pixels.max()) > high + slack:
            raise UsageError(
                f"inputs reach from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, not {low:g} to {high:g}; "
                "give Robustness their mean= and std=, or bounds=None"
            )

    def _noise(self, pixels: Tensor, first: int) -> Tensor:
        rows = []
        for i in range(len(pixels)):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first + i)
            rows.append(torch.randn(pixels.shape[1:], generator=generator))
        return torch.stack(rows).to(pixels.device, pixels.dtype)


def _checked(name: str) -> str:
    kind, _, size = name.removeprefix("robust/").partition(":")
    if kind not in _KINDS or not re.fullmatch(r"\d+(\.\d+)?", size):
        raise UsageError(f"a perturbation is one such as {', '.join(PERTURBATIONS)}, not {name!r}")
    return f"{kind}:{size}"


def _has_pillow(inputs: Tensor) -> bool:
    try:
        import PIL  # noqa: F401
    except ImportError:
        return False
    return inputs.shape[1] in (1, 3)


def _classes(logits: Tensor) -> Tensor:
    values, found = logits.max(-1)
    return torch.where(values.isnan(), -1, found)


# ---- adversarial -----------------------------------------------------------------------------------------------


class _Pixels(nn.Module):
    """A network of pixels, for foolbox."""

    def __init__(self, network: Callable[[Any], Tensor], batch: Any, mean: Tensor, std: Tensor):
        super().__init__()
        self._network, self._batch, self._mean, self._std = network, batch, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        return self._network(with_inputs(self._batch, (pixels - self._mean) / self._std))


def _attacked(
    network: Callable[[Any], Tensor], batch: Any, pixels: Tensor, targets: Tensor, size: float, mean: Tensor,
    std: Tensor, bounds: tuple[float, float] | None,
) -> Tensor:  # fmt: skip
    """Projected gradient descent within `size` of every pixel, from the input itself, so that it repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SciPy, about how foolbox imports it
        try:
            from foolbox.attacks.projected_gradient_descent import LinfProjectedGradientDescentAttack
            from foolbox.models.pytorch import PyTorchModel
        except ImportError:
            raise missing_extra("foolbox", "correctness", "adversarial perturbations") from None
    module = _Pixels(network, batch, mean, std).eval()
    low, high = bounds or (float(pixels.min()) - size, float(pixels.max()) + size)
    attack = LinfProjectedGradientDescentAttack(rel_stepsize=2.5 / _STEPS, steps=_STEPS, random_start=False)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        model = PyTorchModel(module, bounds=(low, high), device=pixels.device)
        found, _, _ = attack(model, pixels, targets, epsilons=size)
    nearest: Tensor = found.detach()
    return nearest


# ---- benign ----------------------------------------------------------------------------------------------------


def _shifted(pixels: Tensor, size: float) -> Tensor:
    by = int(size)
    return functional.pad(pixels, (by, 0, by, 0), mode="replicate")[..., : pixels.shape[-2], : pixels.shape[-1]]


def _brighter(pixels: Tensor, size: float) -> Tensor:
    signs = 1.0 - 2.0 * (torch.arange(len(pixels), device=pixels.device) % 2).to(pixels.dtype)
    return pixels + size * signs.view(-1, *[1] * (pixels.dim() - 1))


def _flatter(pixels: Tensor, size: float) -> Tensor:
    middle = pixels.mean((1, 2, 3), keepdim=True)
    return middle + size * (pixels - middle)


def _blurred(pixels: Tensor, size: float) -> Tensor:
    at = torch.arange(-2, 3, dtype=pixels.dtype, device=pixels.device)
    weights = torch.exp(-(at**2) / (2 * size**2))
    weights = weights / weights.sum()
    channels = pixels.shape[1]
    for shape in ((1, 1, 5, 1), (1, 1, 1, 5)):
        pad = (0, 0, 2, 2) if shape[2] == 5 else (2, 2, 0, 0)
        kernel = weights.view(shape).expand(channels, 1, *shape[2:])
        pixels = functional.conv2d(functional.pad(pixels, pad, mode="replicate"), kernel, groups=channels)
    return pixels


def _through_jpeg(pixels: Tensor, size: float) -> Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("Pillow", "correctness", "JPEG as a perturbation") from None
    if pixels.shape[1] not in (1, 3):
        raise UsageError(f"jpeg needs pictures of 1 or 3 channels, not {pixels.shape[1]}")
    found = []
    for picture in (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        stream = io.BytesIO()
        image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        image.save(stream, "jpeg", quality=int(size))
        decoded = np.asarray(Image.open(stream), np.float32) / 255
        found.append(torch.from_numpy(decoded.reshape(picture.shape)).permute(2, 0, 1))
    return torch.stack(found).to(pixels.device, pixels.dtype)


_BENIGN: dict[str, Callable[[Tensor, float], Tensor]] = {
    "shift": _shifted, "brightness": _brighter, "contrast": _flatter, "blur": _blurred, "jpeg": _through_jpeg,
}  # fmt: skip
