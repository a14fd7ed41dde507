"""The user's training, one epoch at a time: what is counted in it, and the errors where it cannot work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from nearzip.errors import Error, UsageError
from nearzip.network.calls import call, device_of, moved
from nearzip.network.steps import after_steps, before_steps

__all__ = ["TrainEpoch", "Training", "restimate"]

#: train_epoch(module) or train_epoch(module, factor of its learning rate): one epoch of the user's own training.
TrainEpoch = Callable[..., Any]
#: Optimizers that compute their gradients inside the step: hooks before it see none.
_CLOSURES = "an optimizer with a closure (such as L-BFGS) computes its gradients inside the step"


@dataclass
class _Seen:
    """What the optimizers did in one epoch."""

    steps: int = 0
    #: Sum over the steps of how far a unit of gradient moves a weight in the end: lr / (1 - momentum) for SGD.
    rate: float = 0.0


class Training:
    """Runs epochs of `train_epoch` and watches its optimizers.

    Attributes
    ----------
    pull : float
        How far the last epoch would have moved weights for a constant gradient of 1: steps times learning rate over
        one minus momentum. What a penalty's weight must be measured by.
    epochs : int
        How many were run.
    """

    def __init__(self, train_epoch: TrainEpoch, watch: Callable[[int], None] | None = None):
        if not callable(train_epoch):
            raise UsageError(f"train_epoch is a function of a module, not {type(train_epoch).__name__}")
        self._train, self._watch = train_epoch, watch
        self._takes_factor = _takes_two(train_epoch)
        self.pull, self.epochs = 0.0, 0

    def epoch(self, module: nn.Module, factor: float = 1.0) -> None:
        """One epoch, at a factor of its learning rate if `train_epoch` takes one as its second argument.

        Raises
        ------
        UsageError
            No optimizer stepped over the module's parameters, or one computes its gradients in a closure.
        Error
            `train_epoch` raised.
        """
        seen = _Seen()
        own = {id(p) for p in module.parameters()}

        def before(optimizer: Optimizer, arguments: Any, named: Any) -> None:
            if _touches(optimizer, own) and callable(arguments[1] if len(arguments) > 1 else named.get("closure")):
                raise UsageError(f"{_CLOSURES}; train with one that does not take a closure")

        def after(optimizer: Optimizer, *_: Any) -> None:
            if _touches(optimizer, own):
                seen.steps += 1
                seen.rate += _rate(optimizer)

        hooks = [before_steps(before), after_steps(after)]
        module.train()
        try:
            with torch.enable_grad():
                self._train(module, factor) if self._takes_factor else self._train(module)
        except Error:
            raise
        except Exception as error:
            raise Error(f"train_epoch raised {type(error).__name__}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        if not seen.steps:
            raise UsageError(
                "train_epoch took no optimizer step on the module that it was given; make the optimizer inside, over "
                "that module's parameters: thinning replaces them"
            )
        self.pull = seen.rate
        self.epochs += 1
        if self._watch:
            self._watch(self.epochs)


def _takes_two(function: TrainEpoch) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p for p in needed if p.default is p.empty or p.name in ("lr", "factor")]
    return len(named) >= 2


def _touches(optimizer: Optimizer, own: set[int]) -> bool:
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def _rate(optimizer: Optimizer) -> float:
    """How far one unit of gradient moves a weight in the end, the mean over the optimizer's parameters.

    SGD: lr (1 - dampening) / (1 - momentum). Adam and its kin divide by the root of the mean square of gradients.
    """
    total = weights = 0.0
    for group in optimizer.param_groups:
        lr = float(group["lr"])
        momentum = float(group.get("momentum", 0.0) or 0.0)
        lr *= (1 - float(group.get("dampening", 0.0) or 0.0)) / max(1 - momentum, 1e-6) if momentum else 1.0
        for parameter in group["params"]:
            n = parameter.numel()
            total += n * lr / _scale(optimizer.state.get(parameter, {}))
            weights += n
    return total / max(weights, 1.0)


def _scale(state: Any) -> float:
    for name in ("exp_avg_sq", "square_avg", "sum"):
        square = state.get(name)
        if isinstance(square, Tensor):
            return float(square.sqrt().mean()) + 1e-8
    return 1.0


@torch.no_grad()
def restimate(module: nn.Module, batches: Any) -> None:
    """Re-estimate the running statistics of batch norm, in place, from batches of inputs.

    A network whose weights were exchanged has the statistics of other activations. `batches`: one batch, or a list of
    them; None does nothing.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    if not norms or batches is None:
        return
    modes = [(layer, layer.training) for layer in module.modules()]
    momenta = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    try:
        for batch in _batches(batches):
            call(module, moved(batch, device_of(module)))
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        for any_layer, mode in modes:
            any_layer.training = mode


def _batches(batches: Any) -> Iterable[Any]:
    """A list of batches as it is; anything else is one batch. (inputs, targets) is a tuple."""
    return batches if isinstance(batches, list) else [batches]
