"""Running a network on the user's batches: what goes in, what comes out, and how far two outputs are apart."""

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

__all__ = ["Forward", "Output", "Runner", "call"]

#: From a network and a batch to its predictions.
Forward = Callable[[nn.Module, Any], Tensor]
#: What the last dimension of the predictions is: unnormalised logarithms of probabilities, or plain numbers.
Output = Literal["logits", "values"]


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_moved(value, device) for value in batch]
    return batch


def call(module: nn.Module, batch: Any) -> Tensor:
    """The usual ways: a tensor is the input; a tuple or list holds the input first (and perhaps targets); a mapping
    holds keyword arguments. Predictions are a tensor, an object's `logits`, or the first of a tuple.
    """
    if isinstance(batch, Mapping):
        output = module(**batch)
    else:
        output = module(batch[0] if isinstance(batch, (tuple, list)) else batch)
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output[0] if isinstance(output, (tuple, list)) and output else None)
    if not isinstance(output, Tensor):
        raise UsageError("the network returns no tensor, and nothing called logits; say how to call it with forward=")
    return output


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


class Runner:
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
        self._forward = forward or call
        first = next(module.parameters(), None)
        self._device = first.device if first is not None else torch.device("cpu")
        self.batches = [_moved(batch, self._device) for batch in itertools.islice(batches, most)]
        if not self.batches:
            raise UsageError("calibration needs at least one batch")

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return _evaluating(self.module)

    def predictions(self, batch: Any, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Shape (predictions, classes), float32; with other tensors in place of the module's own, if given."""
        if tensors is None:
            found = self._forward(self.module, batch)
        else:
            found = torch.func.functional_call(_Called(self.module, self._forward), {
                f"module.{name}": value for name, value in tensors.items()
            }, (batch,))  # fmt: skip
        if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim():
            raise UsageError("forward= returns the network's predictions, a floating-point tensor")
        if tensors is None and not (found.numel() and bool(torch.isfinite(found).all())):
            raise UsageError(
                "the network's predictions on the batches are not finite; check the weights and the batches"
            )
        return found.reshape(-1, found.shape[-1]).float()

    def score(self, predictions: Tensor, generator: torch.Generator) -> Tensor:
        """Gradient, at the predictions, of the logarithm of the probability of an answer drawn from the network itself.

        Its second moment is the Fisher information: the curvature of the divergence that `divergence` measures.
        """
        with torch.no_grad():
            if self.output == "values":
                return torch.randn(predictions.shape, generator=generator).to(predictions.device)
            shares = predictions.softmax(-1)
            drawn = torch.multinomial(shares.cpu(), 1, generator=generator)[:, 0].to(shares.device)
            return shares - functional.one_hot(drawn, shares.shape[-1])

    def divergence(self, original: Tensor, restored: Tensor) -> Tensor:
        """KL(original || restored) in nats per prediction; of plain numbers half the squared distance."""
        if self.output == "values":
            return (original - restored).square().sum(-1).mean() / 2
        found: Tensor = functional.kl_div(
            restored.log_softmax(-1), original.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return found

    def mean_divergence(self, originals: list[Tensor], batches: list[Any], tensors: Mapping[str, Tensor]) -> float:
        """Over batches whose original predictions are known; infinite where the network breaks down."""
        with torch.no_grad():
            found = [
                (float(self.divergence(original, self.predictions(batch, tensors))), len(original))
                for original, batch in zip(originals, batches, strict=True)
            ]
        mean = sum(kl * n for kl, n in found) / sum(n for _, n in found)
        return mean if math.isfinite(mean) else math.inf


class _Called(nn.Module):
    """Lets `functional_call` swap the tensors of a network that is called in the user's own way."""

    def __init__(self, module: nn.Module, forward: Forward):
        super().__init__()
        self.module = module
        self._how = forward

    def forward(self, batch: Any) -> Tensor:
        return self._how(self.module, batch)
