"""Training that holds pruned weights at zero and shared weights equal, or pulls weights towards given values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.errors import UsageError
from nearzip.network.arrays import to_torch
from nearzip.network.steps import after_steps, before_steps
from nearzip.recipes.by_name import ByName
from nearzip.recipes.retrain import Hold
from nearzip.stages.codebook import cluster, nearest
from nearzip.stages.prune import largest
from nearzip.tensors import as_array

__all__ = ["finetune", "holding", "prune", "share"]


def prune(module: nn.Module, keep: float | str | Mapping[str, float]) -> tuple[str, ...]:
    """Make all but the largest weights zero, in place: masks for `finetune`.

    Parameters
    ----------
    module : torch.nn.Module
    keep : float, mapping or str
        Share of the weights kept, for all layers or by parameter name or pattern, as the option `keep` of the pruning
        methods. Only parameters of two dimensions or more are pruned.

    Returns
    -------
    tuple of str
        Names of the parameters that were pruned.
    """
    shares, layers = ByName.parse(keep), _layers(module)
    shares.check_names("keep", layers)
    chosen = {name: share for name in layers if (share := shares[name]) is not None}
    for name, share in chosen.items():
        if not 0 <= share <= 1:
            raise UsageError(f"the share of weights kept lies between 0 and 1, not {share}")
        weight = layers[name]
        kept = largest(weight.detach().to("cpu", torch.float64).reshape(-1).numpy(), share)
        with torch.no_grad():
            weight.mul_(torch.from_numpy(kept).reshape(weight.shape).to(weight.device))
    return tuple(chosen)


def share(module: nn.Module, clusters: float | str | Mapping[str, float]) -> tuple[str, ...]:
    """Replace nonzero weights by a few shared values, in place: k-means, as `Codebook`. Zeros stay.

    `clusters`: how many, for all layers of two dimensions or more, or by name or pattern. Returns their names.
    """
    numbers, layers = ByName.parse(clusters), _layers(module)
    numbers.check_names("clusters", layers)
    chosen = {name: int(n) for name in layers if (n := numbers[name]) is not None}
    for name, n in chosen.items():
        weight = layers[name]
        values = weight.detach().to("cpu", torch.float32).reshape(-1).numpy().copy()
        places = values != 0
        if places.any():
            centroids = cluster(values[places], n)
            values[places] = centroids[nearest(values[places], centroids)]
        with torch.no_grad():
            weight.copy_(torch.from_numpy(values).reshape(weight.shape))
    return tuple(chosen)


def finetune(
    module: nn.Module,
    train_epoch: Callable[[nn.Module], Any],
    hold: Hold | None = None,
    *,
    epochs: int = 1,
    keep: float | str | Mapping[str, float] | None = None,
    clusters: float | str | Mapping[str, float] | None = None,
) -> list[Any]:
    """Train a pruned or clustered module; what is held stays so after every optimizer step.

    Zeros get no gradient and stay zero (DeepSZ, section 3.2). Weights that share a value get the sum of their
    gradients, so that the value is what is trained (Deep Compression, section 3.3). Towards `hold.near` weights are
    pulled at every optimizer step: the gradient of the penalty is added once a step, however many batches a step
    accumulates.

    Parameters
    ----------
    module : torch.nn.Module
    train_epoch : callable
        train_epoch(module): one epoch of your own training; any optimizer over the module's own parameters.
    hold : Hold or None
        What is held, by parameter name, as a `retrain` function gets it. None: zeros of all parameters of two
        dimensions or more, and the values shared by `clusters`.
    epochs : int
    keep, clusters : number, mapping or str
        First `prune`, then `share` the module.

    Returns
    -------
    list
        What `train_epoch` returned, epoch by epoch.

    Raises
    ------
    UsageError
        A name in `hold` that is no parameter or buffer of the module, or values of another shape to pull towards.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> layer = nn.Linear(4, 4)
    >>> def train_epoch(module):
    ...     optimizer = torch.optim.SGD(module.parameters(), 0.1)
    ...     module(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> _ = finetune(layer, train_epoch, keep=0.25)
    >>> int((layer.weight != 0).sum())
    4
    """
    if keep is not None:
        prune(module, keep)
    shared = () if clusters is None else share(module, clusters)
    held = hold or Hold(tuple(_layers(module)))
    held = replace(held, shared=tuple(dict.fromkeys(held.shared + shared)))
    with holding(module, held):
        return [train_epoch(module) for _ in range(epochs)]


@contextlib.contextmanager
def holding(module: nn.Module, hold: Hold) -> Iterator[None]:
    """Hold masks, shared values and frozen tensors, and pull, while the block trains: `finetune` without its loop."""
    pulls = _pulls(module, hold)
    held = [_held(name, tensor, hold) for name, tensor in _named(module, hold).items()]
    own = {id(parameter) for parameter in module.parameters()}

    def put_back(*_: Any) -> None:
        with torch.no_grad():
            for one in held:
                one.put_back()

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # The hook sees every optimizer of the process: trainings of other modules may run in other threads.
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            put_back()

    hooks: list[Any] = [
        one.tensor.register_hook(one.gradient)  # type: ignore[no-untyped-call]
        for one in held
        if one.tensor.requires_grad
    ]
    if pulls:
        hooks.append(before_steps(_Pulling(pulls, hold.weight)))
    # Momentum and weight decay move what has no gradient: after every step over the module all is put back.
    hooks.append(after_steps(after_step))
    try:
        yield
        put_back()
    finally:
        for hook in hooks:
            hook.remove()


def _layers(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.dim() >= 2 and p.is_floating_point()}


def _pulls(module: nn.Module, hold: Hold) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters, and the values they are pulled towards. Raises UsageError for names and shapes of another module."""
    known = dict(module.named_parameters(remove_duplicate=False))
    found = []
    for name, values in hold.near.items() if hold.weight else ():
        if name not in known:
            raise UsageError(f"the module has no parameter {name!r} to pull; it has {', '.join(known)[:200]}")
        parameter = known[name]
        target = to_torch(as_array(name, values)).to(parameter.device, parameter.dtype)
        if target.shape != parameter.shape:
            raise UsageError(f"tensor {name!r} is {list(parameter.shape)}, what it is pulled to {list(target.shape)}")
        found.append((parameter, target))
    return found


class _Pulling:
    """Before every optimizer step: adds the penalty's gradient to those of the parameters that the optimizer has."""

    def __init__(self, pulls: list[tuple[nn.Parameter, Tensor]], weight: float):
        self._pulls, self._weight = pulls, weight

    def __call__(self, optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> tuple[Any, Any] | None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        pulls = [(p, target) for p, target in self._pulls if id(p) in own and p.requires_grad]
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        if not callable(closure):
            self._add(pulls, _loss_scale(optimizer))
            return None

        def pulled() -> Any:
            # An optimizer with a closure computes its gradients inside the step, several times perhaps.
            loss = closure()
            self._add(pulls)
            return None if loss is None else loss + self._penalty(pulls)

        if len(arguments) > 1:
            return (arguments[0], pulled, *arguments[2:]), named
        return arguments, {**named, "closure": pulled}

    @torch.no_grad()
    def _add(self, pulls: list[tuple[nn.Parameter, Tensor]], scale: float = 1.0) -> None:
        for parameter, target in pulls:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_((parameter - target).nan_to_num_(0.0), alpha=self._weight * scale)

    @torch.no_grad()
    def _penalty(self, pulls: list[tuple[nn.Parameter, Tensor]]) -> Tensor | float:
        return sum((self._weight / 2 * (p - target).square().nansum() for p, target in pulls), 0.0)


def _loss_scale(optimizer: torch.optim.Optimizer) -> float:
    """What gradients are still multiplied by: with mixed precision, fused optimizers divide inside the step."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _named(module: nn.Module, hold: Hold) -> dict[str, Tensor]:
    known: dict[str, Tensor] = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    wanted = dict.fromkeys((*hold.zeros, *hold.shared, *hold.frozen))
    for name in wanted:
        if name not in known:
            raise UsageError(f"the module has no parameter or buffer {name!r} to hold; it has {', '.join(known)[:200]}")
    return {name: known[name] for name in wanted}


@dataclass(frozen=True)
class _Held:
    """One tensor, and what of it is held."""

    tensor: Tensor
    mask: Tensor | None
    #: For each weight the number of its shared value; for each value the index of one weight that has it.
    group: Tensor | None
    first: Tensor | None
    frozen: Tensor | None

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient that the optimizer gets in place of `gradient`."""
        if self.frozen is not None:
            return torch.zeros_like(gradient)
        if self.group is not None and self.first is not None:
            sums = torch.zeros(self.first.numel(), dtype=gradient.dtype, device=gradient.device)
            sums.index_add_(0, self.group, gradient.reshape(-1))
            gradient = sums[self.group].reshape(gradient.shape)
        return gradient if self.mask is None else gradient * self.mask

    def put_back(self) -> None:
        if self.frozen is not None:
            self.tensor.copy_(self.frozen)
            return
        if self.group is not None:
            self.tensor.copy_(self.tensor.reshape(-1)[self.first][self.group].reshape(self.tensor.shape))
        if self.mask is not None:
            self.tensor.masked_fill_(~self.mask, 0)


def _held(name: str, tensor: Tensor, hold: Hold) -> _Held:
    values = tensor.detach()
    group = first = None
    if name in hold.shared:
        _, group = torch.unique(values.reshape(-1), return_inverse=True)
        first = torch.empty(int(group.max()) + 1 if group.numel() else 0, dtype=torch.long, device=values.device)
        # The last writer wins on some devices: any member of the group will do.
        first[group] = torch.arange(group.numel(), device=values.device)
    return _Held(
        tensor,
        values != 0 if name in hold.zeros else None,
        group,
        first,
        values.clone() if name in hold.frozen else None,
    )
