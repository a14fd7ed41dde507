"""A network and the batches that it is calibrated on: its predictions, and how far two of them are apart."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzip.errors import UsageError
from nearzip.network.calls import Caller, moved, predictions_of

__all__ = ["Forward", "Output", "Predictor"]

#: From a network and a batch to its predictions.
Forward = Callable[[nn.Module, Any], Tensor]
#: What the last dimension of the predictions is: unnormalised logarithms of probabilities, or plain numbers.
Output = Literal["logits", "values"]


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, every floating-point parameter with a gradient; afterwards as it was."""
    modes = {m: m.training for m in module.modules()}
    wanted = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    module.eval()
    for parameter, _, _ in wanted:
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires, gradient in wanted:
            parameter.grad = None
            parameter.requires_grad_(requires)
            parameter.grad = gradient
        for m, training in modes.items():
            m.training = training


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def _rows(batch: Any) -> int:
    """Of all tensors in it; 0 where they differ."""
    found = {each.shape[0] if each.dim() else 0 for each in _tensors(batch)}
    return found.pop() if len(found) == 1 else 0


def _first(batch: Any, n: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:n]
    if isinstance(batch, Mapping):
        return {name: _first(value, n) for name, value in batch.items()}
    return tuple(_first(value, n) for value in batch) if isinstance(batch, tuple) else batch


class Predictor:
    """A network, how it is called, and the batches that it is called with."""

    def __init__(
        self,
        module: nn.Module,
        batches: Iterable[Any],
        forward: Forward | None = None,
        output: Output = "logits",
        most: int | None = None,
    ):
        if output not in ("logits", "values"):
            raise UsageError(f"output is 'logits' or 'values', not {output!r}")
        self.module, self.output = module, output
        self._caller = Caller(module, forward or predictions_of)
        self.batches = [moved(batch, self._caller.device) for batch in itertools.islice(batches, most)]
        if not self.batches:
            raise UsageError("calibration needs at least one batch")

    @property
    def device(self) -> torch.device:
        return self._caller.device

    @property
    def held(self) -> range:
        """Numbers of the batches that are held back to measure on: the last quarter."""
        n = len(self.batches)
        return range(n - max(1, n // 4), n)

    @property
    def fitted(self) -> range:
        """Numbers of the batches that biases are fitted to: half of the others fit as well (docs/tried.md)."""
        n = self.held.start or len(self.batches)
        return range((n + 1) // 2)

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return _evaluating(self.module)

    def predictions(self, batch: Any, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Shape (predictions, classes), float32; with other tensors in place of the module's own, if given."""
        found = self._caller(batch, tensors)
        if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim():
            raise UsageError("forward= returns the network's predictions, a floating-point tensor")
        if tensors is None and not (found.numel() and bool(torch.isfinite(found).all())):
            raise UsageError(
                "the network's predictions on the batches are not finite; check the weights and the batches"
            )
        return found.reshape(-1, found.shape[-1]).float()

    def part(self, batch: Any, original: Tensor, share: float) -> tuple[Any, Tensor]:
        """The first rows of a batch and their original predictions; all of them where rows cannot be told apart, or
        depend on each other.
        """
        rows = _rows(batch)
        n = math.ceil(share * rows) if rows else 0
        if n in (0, rows) or len(original) % rows:
            return batch, original
        some, expected = _first(batch, n), original[: n * len(original) // rows]
        try:
            with torch.no_grad():
                found = self.predictions(some)
        except (IndexError, RuntimeError, TypeError, ValueError, UsageError):
            return batch, original
        same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
        return (some, expected) if same else (batch, original)

    def score(self, predictions: Tensor, generator: torch.Generator) -> Tensor:
        """Gradient, at the predictions, of the logarithm of the probability of an output drawn from the network itself.

        Its second moment is the Fisher information: the curvature of the divergence that `divergence` measures.
        """
        with torch.no_grad():
            if self.output == "values":
                return torch.randn(predictions.shape, generator=generator).to(predictions.device)
            shares = predictions.softmax(-1)
            drawn = torch.multinomial(shares.cpu(), 1, generator=generator)[:, 0].to(shares.device)
            shares[torch.arange(len(shares), device=shares.device), drawn] -= 1
            return shares

    def divergence(self, original: Tensor, restored: Tensor) -> Tensor:
        """KL(original || restored) in nats per prediction; of plain numbers half the squared distance."""
        if self.output == "values":
            return (original - restored).square().sum(-1).mean() / 2
        found: Tensor = functional.kl_div(
            restored.log_softmax(-1), original.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return found

    def loss(self, original: Tensor, batch: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """`divergence` from the original predictions for a batch, with these tensors in place of the module's own."""
        return self.divergence(original, self.predictions(batch, tensors))

    def mean_divergence(self, originals: list[Tensor], batches: list[Any], tensors: Mapping[str, Tensor]) -> float:
        """Over batches whose original predictions are known; infinite where the network breaks down."""
        with torch.no_grad():
            found = [
                (float(self.loss(original, batch, tensors)), len(original))
                for original, batch in zip(originals, batches, strict=True)
            ]
        mean = sum(kl * n for kl, n in found) / sum(n for _, n in found)
        return mean if math.isfinite(mean) else math.inf
