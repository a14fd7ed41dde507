"""Images whose coefficients are rounded for a network: where it changes the network's outputs least, and saves bytes.

What `nearzip.calibrate` does for weights: a coefficient lies between two levels, and which of them is taken hardly
matters for the eye, but does for the divergence of the outputs. Encoders only; readers see no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.datasets import cosine_model
from nearzip.datasets.codecs.cosine import Cosine
from nearzip.datasets.codecs.registry import codec_of
from nearzip.datasets.codecs.stacks import by_shape
from nearzip.datasets.cosines import BASIS, COLORS, SIDE, coefficients, levels_of
from nearzip.datasets.preparing import Normalised, evaluating
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["ForNetwork", "for_network"]

#: Values of images that go through the networks together.
_TOGETHER = 768_000
#: Coefficients of an image that may change in a round.
_MOST = 64
#: No coefficient is moved further than this from its value, in steps.
_FURTHEST = 0.85
#: What a bit is worth, as a share of the mean divergence of an image with plain levels.
_WORTH = 1e-3
#: About what a level takes more if it is no longer 0, and if it grows otherwise.
_FIRST_BITS, _MORE_BITS = 4.5, 0.8


def for_network(
    modules: nn.Module | Sequence[nn.Module],
    codec: str | Cosine = "nearzip",
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    rounds: int = 8,
) -> ForNetwork:
    """Our image codec with coefficients rounded for a network: far smaller files at the same divergence of its outputs.

    Files are of the codec "nearzip" and are read as any other. Writing takes about `rounds` passes of training over the
    images, once; the levels are kept in memory (two bytes for a value) until the codec is dropped.

    Parameters
    ----------
    modules : torch.nn.Module or several
        Networks for classes, which return logits (n, classes). Of several the mean divergence counts. It is for
        these networks that images get smaller; judge the result on another one before you call it a data set for
        everybody.
    codec : str or Cosine
        "nearzip:26", or with steps of `datasets.calibrate`.
    prepare : callable
        From float32 tensors (n, channels, height, width) in [0, 1] to the networks' input. Default: minus `mean`, over
        `std`.
    rounds : int

    Returns
    -------
    ForNetwork
        For `write` and `tune`.

    Raises
    ------
    UsageError
        No network, another codec; when images are written, a network whose outputs are no logits, or not finite.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from nearzip import datasets
    >>> images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))
    >>> codec = datasets.for_network(net, "nearzip:40")
    >>> datasets.write("for_net.nzd", images, codec=codec, force=True).codec
    'nearzip:40'
    """
    own = codec_of(codec)
    networks = (modules,) if isinstance(modules, nn.Module) else tuple(modules)
    if not isinstance(own, Cosine):
        raise UsageError(f"levels are chosen for the codec 'nearzip', not {own.name!r}")
    if not networks:
        raise UsageError("no network is given")
    if type(rounds) is not int or rounds < 1:
        raise UsageError(f"rounds is a positive whole number, not {rounds!r}")
    chooser = _Chooser(networks, prepare or Normalised(mean, std), rounds)
    return ForNetwork(own.step, own.rounding, own.steps, chooser)


@dataclass(frozen=True)
class ForNetwork(Cosine):
    """`Cosine` whose levels are chosen for networks; see `for_network`. In files it is a `Cosine`."""

    chooser: Any = field(default=None, compare=False, repr=False)
    _known: Any = field(default=None, init=False, compare=False, repr=False)
    _shifts: Any = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_known", {})

    def plain(self) -> Cosine:
        """The codec as files name it."""
        return Cosine(**{each.name: getattr(self, each.name) for each in fields(Cosine)})

    def to_json(self) -> dict[str, Any]:
        return self.plain().to_json()

    def __str__(self) -> str:
        return str(self.plain())

    def _model(self, chunks: Iterable[Sequence[Array]], steps: Array, color: bool) -> cosine_model.Parts:
        for chunk in chunks:
            for _, stack in by_shape(chunk):
                new = [image for image in stack if _key(image) not in self._known]
                if not new:
                    continue
                images = np.stack(new)
                raw = coefficients(images, color)
                plain = levels_of(raw, steps, self.rounding)
                if self._shifts is None:
                    # What the decoder takes off is fixed first, from plain levels: choices depend on it.
                    object.__setattr__(self, "_shifts", cosine_model.shifts_of([cosine_model.Fit(plain, raw)], steps))
                chosen = self.chooser.levels(images, raw, plain, steps, self._shifts)
                self._known.update(zip(map(_key, images), chosen, strict=True))
        return replace(super()._model(chunks, steps, color), shifts=self._shifts)

    def levels(self, images: Array, raw: Array, steps: Array) -> Array:
        found = super().levels(images, raw, steps)
        for i, image in enumerate(images):
            chosen = self._known.get(_key(image))
            if chosen is not None:
                found[i] = chosen
        return found


def _key(image: Array) -> bytes:
    return digest(repr(image.shape).encode(), image.tobytes())


@dataclass(frozen=True)
class _Chooser:
    networks: tuple[nn.Module, ...]
    prepare: Callable[[Tensor], Tensor]
    rounds: int

    def levels(self, images: Array, raw: Array, plain: Array, steps: Array, shifts: Array) -> Array:
        """Levels (n, rows, columns, channels, 8, 8) int16 of images, from the nearest ones."""
        n = max(1, _TOGETHER // images[0].size)
        with evaluating(self.networks):
            parts = [
                self._chosen(images[at : at + n], raw[at : at + n], plain[at : at + n], _Decoder(images, steps, shifts))
                for at in range(0, len(images), n)
            ]
        return np.concatenate(parts)

    def _chosen(self, images: Array, raw: Array, plain: Array, decoder: _Decoder) -> Array:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32)
        with torch.no_grad():
            own = [torch.softmax(_logits(network, self.prepare(pixels / 255)), 1) for network in self.networks]
        values, levels = torch.from_numpy(raw).flatten(1), torch.from_numpy(plain.astype(np.float32)).flatten(1)
        share = torch.ones(len(images))
        divergence, gradients = self._divergence(levels, own, decoder)
        worth = _WORTH * float(divergence.mean())
        for _ in range(self.rounds):
            other, change, bits = decoder.other(levels, values)
            gain = -(gradients * change) - worth * bits
            gain[(decoder.restored(other) - values).abs() > _FURTHEST * decoder.steps(levels)] = -1.0
            best = gain.topk(min(_MOST, gain.shape[1]), 1)
            falls = (-(gradients * change)).gather(1, best.indices).clamp_min(0)
            # Until what they promise together is all that there is: beyond, the straight line says nothing.
            taken = (best.values > 0) & (falls.cumsum(1) - falls < (share * divergence)[:, None])
            tried = levels.scatter(
                1, best.indices,
                torch.where(taken, other.gather(1, best.indices), levels.gather(1, best.indices)),
            )  # fmt: skip
            then, theirs = self._divergence(tried, own, decoder)
            more = worth * (bits.gather(1, best.indices) * taken).sum(1)
            better = then + more < divergence
            levels = torch.where(better[:, None], tried, levels)
            gradients = torch.where(better[:, None], theirs, gradients)
            divergence = torch.where(better, then, divergence)
            share = torch.where(better, (1.2 * share).clamp_max(1.5), 0.4 * share)
        return levels.reshape(raw.shape).numpy().astype(np.int16)

    def _divergence(self, levels: Tensor, own: list[Tensor], decoder: _Decoder) -> tuple[Tensor, Tensor]:
        """Mean divergence of each image over the networks, and its gradients by the coefficients."""
        values = decoder.restored(levels).requires_grad_(True)
        inputs = self.prepare(decoder.pixels(values) / 255)
        total = torch.zeros(len(levels))
        for network, p in zip(self.networks, own, strict=True):
            logs = torch.log_softmax(network(inputs), 1)
            total = total + (p * (p.clamp_min(1e-12).log() - logs)).sum(1) / len(self.networks)
        (gradients,) = torch.autograd.grad(total.sum(), values)
        return total.detach(), gradients


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """A network's outputs, checked once. Raises UsageError."""
    found = network(inputs)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs):
        raise UsageError("a network returns logits, a tensor (n, classes)")
    if not bool(torch.isfinite(found).all()):
        raise UsageError("the network's outputs for the images are not finite; check its weights, mean and std")
    return found


class _Decoder:
    """What the decoder makes of levels, in floating point, so that gradients pass."""

    def __init__(self, images: Array, steps: Array, shifts: Array):
        _, self._height, self._width, self._channels = images.shape
        self._rows, self._columns = -(-self._height // SIDE), -(-self._width // SIDE)
        blocks = self._rows * self._columns
        self._steps = torch.from_numpy(np.tile(steps.reshape(-1).astype(np.float32), blocks))
        #: By channel and coefficient, for levels of 1, 2 and above.
        self._shifts = [
            torch.from_numpy(np.tile(shifts[:, k].reshape(-1).astype(np.float32) / 16, blocks)) for k in range(3)
        ]
        self._basis = torch.from_numpy(BASIS)
        self._colors = torch.from_numpy(np.linalg.inv(COLORS).astype(np.float32))

    def steps(self, levels: Tensor) -> Tensor:
        return self._steps.expand_as(levels)

    def restored(self, levels: Tensor) -> Tensor:
        """Coefficients in grey levels."""
        m = levels.abs()
        shift = torch.where(m == 1, self._shifts[0], torch.where(m == 2, self._shifts[1], self._shifts[2]))
        return levels.sign() * torch.where(m > 0, m * self._steps - shift, 0.0)

    def other(self, levels: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The level on the other side of each value; what changes in the coefficient, and in bits."""
        here = self.restored(levels)
        other = levels + torch.where(values >= here, 1.0, -1.0)
        grows = other.abs() > levels.abs()
        first = torch.where(grows, levels, other) == 0
        bits = torch.where(first, _FIRST_BITS, _MORE_BITS)
        return other, self.restored(other) - here, torch.where(grows, bits, -bits)

    def pixels(self, values: Tensor) -> Tensor:
        """(n, channels, height, width) in grey levels, rounded; gradients pass the rounding."""
        blocks = values.reshape(-1, self._rows, self._columns, self._channels, SIDE, SIDE)
        found = self._basis.T @ blocks @ self._basis
        image = found.permute(0, 3, 1, 4, 2, 5).reshape(
            len(values), self._channels, self._rows * SIDE, self._columns * SIDE
        )[:, :, : self._height, : self._width]
        if self._channels >= 3:
            colors = torch.einsum("ij,njhw->nihw", self._colors, image[:, :3])
            image = torch.cat([colors, image[:, 3:]], 1)
        image = (image + 128).clamp(0, 255)
        return image + (image.round() - image).detach()
