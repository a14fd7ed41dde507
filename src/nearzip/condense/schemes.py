"""What is removed from a network: schemes, and the sets of networks that they project onto."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.errors import UsageError
from nearzip.recipes.retrain import Hold
from nearzip.stages.codebook import cluster, nearest
from nearzip.stages.prune import largest

__all__ = ["Prepared", "Prune", "Quantize", "Scheme", "check_keep", "scheme_of"]

Values = dict[str, Tensor]


def check_keep(keep: Any) -> float:
    """A share of a network that is kept. Raises UsageError unless 0 < keep <= 1."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise UsageError(f"keep is the share of a network that is kept, above 0 and at most 1, not {keep!r}")
    return float(keep)


class Prepared(ABC):
    """A scheme for one network: what it marks, and its projection.

    Attributes
    ----------
    names : tuple of str
        Parameters that are marked: the penalty of a learning step pulls them.
    size : int
        What `keep` is a share of: weights, or channels.
    prunes : bool
        Whether `keep` is a share for this scheme.
    """

    names: tuple[str, ...]
    size: int = 0
    prunes = False

    @abstractmethod
    def project(self, values: Mapping[str, Tensor], keep: float) -> Values:
        """The nearest values within the scheme: tensors by marked name, those given are not changed."""

    def hold(self, module: nn.Module) -> Hold:
        """The values that training must not change in a projected network."""
        return Hold()

    def thin(self, module: nn.Module, keep: float) -> nn.Module:
        """The projected network with zeroed channels cut out, where the scheme changes shapes."""
        return module

    def settle(self, module: nn.Module) -> None:  # noqa: B027
        """Correct, in place, values that training moved out of the scheme and `hold` cannot fix."""

    def key(self, keep: float) -> object:
        """A key of the share: shares with equal keys give networks of the same shapes and zeros."""
        return keep

    def snap(self, keep: float) -> float:
        """The nearest share that is worth trying."""
        return float(f"{keep:.4g}")

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each group of channels that could not be thinned, with the reason."""
        return ()


class Scheme(ABC):
    """What to remove from a network: `Prune`, `Structure`, `Quantize`, or a tuple of them."""

    @abstractmethod
    def prepare(self, module: nn.Module, inputs: Any = None, size: int | None = None) -> Prepared:
        """The scheme prepared for one network.

        Parameters
        ----------
        module : torch.nn.Module
        inputs : batch or None
            Example inputs, where the scheme must see the network run.
        size : int or None
            What `keep` is a share of, where the network was thinned before. None: the network's own.

        Raises
        ------
        UsageError
            The network has nothing that the scheme could remove.
        """


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Floating-point parameters of two dimensions or more; tied ones under their first name."""
    return {name: p for name, p in module.named_parameters() if p.dim() >= 2 and p.is_floating_point()}


def chosen_names(names: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> tuple[str, ...]:
    """Names that match `only` (all if empty) and nothing of `skip`. Raises UsageError for a pattern without a name."""
    for pattern in (*only, *skip):
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"no tensor is called {pattern!r}; there are {', '.join(names)[:200]}")
    found = (n for n in names if not only or any(fnmatch.fnmatchcase(n, p) for p in only))
    return tuple(n for n in found if not any(fnmatch.fnmatchcase(n, p) for p in skip))


@dataclass(frozen=True)
class Prune(Scheme):
    """Magnitude pruning with one threshold over all layers: of n weights exactly round(keep n) are kept.

    Of equal magnitudes the first are kept, in the order of the network's parameters. Weights are parameters of two
    dimensions or more.

    Parameters
    ----------
    keep : float or None
        A share of its own, of the weights that the schemes before it left: where another scheme of a tuple prunes by
        `keep`.
    only, skip : tuple of str
        Names or patterns (`fnmatch`) of parameters: only these, and not those.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 3.0], [3.0, 3.0]]))
    >>> Prune().prepare(layer).project({"weight": layer.weight.data}, 0.5)["weight"].tolist()
    [[0.0, 3.0], [3.0, 0.0]]
    """

    keep: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.keep is not None:
            check_keep(self.keep)

    def prepare(self, module: nn.Module, inputs: Any = None, size: int | None = None) -> Prepared:
        weights = weights_of(module)
        names = chosen_names(list(weights), self.only, self.skip)
        if not names:
            raise UsageError("the network has no weights of two dimensions or more to prune")
        n = sum(weights[name].numel() for name in names)
        return _Pruned(names, n if size is None else size, self.keep)


class _Pruned(Prepared):
    def __init__(self, names: tuple[str, ...], size: int, own: float | None):
        self.names, self.size, self._own = names, size, own
        self.prunes = own is None

    def project(self, values: Mapping[str, Tensor], keep: float) -> Values:
        flat = torch.cat([values[name].detach().reshape(-1).float() for name in self.names]).cpu().numpy()
        total = self.size if self._own is None else int(np.count_nonzero(flat))
        n_kept = max(1, round((keep if self._own is None else self._own) * total))
        mask = torch.from_numpy(largest(flat, min(1.0, n_kept / flat.size)))
        found: Values = {}
        begin = 0
        for name in self.names:
            value = values[name].detach()
            part = mask[begin : begin + value.numel()].reshape(value.shape).to(value.device)
            found[name] = torch.where(part, value, torch.zeros_like(value))
            begin += value.numel()
        return found

    def hold(self, module: nn.Module) -> Hold:
        return Hold(zeros=self.names)


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Quantize(Scheme):
    """Few values in place of many: shared ones by k-means for each layer, or those of a narrower dtype.

    Zeros stay zero. To make files smaller, the error bound that `tune` finds afterwards works better.

    Parameters
    ----------
    bits : int or str
        2^bits shared values for each layer, 1 to 16; or "float16" or "bfloat16".
    only, skip : tuple of str
        As for `Prune`.
    """

    bits: int | str = 5
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = type(self.bits) is int and 1 <= self.bits <= 16
        if not whole and self.bits not in _DTYPES:
            raise UsageError(f"Quantize takes 1 to 16 bits, or one of {', '.join(_DTYPES)}, not {self.bits!r}")

    def prepare(self, module: nn.Module, inputs: Any = None, size: int | None = None) -> Prepared:
        names = chosen_names(list(weights_of(module)), self.only, self.skip)
        if not names:
            raise UsageError("the network has no weights of two dimensions or more to quantize")
        return _Quantized(names, self.bits)


class _Quantized(Prepared):
    def __init__(self, names: tuple[str, ...], bits: int | str):
        self.names, self._bits = names, bits

    def project(self, values: Mapping[str, Tensor], keep: float) -> Values:
        return {name: self._rounded(values[name].detach()) for name in self.names}

    def _rounded(self, value: Tensor) -> Tensor:
        if isinstance(self._bits, str):
            return value.to(_DTYPES[self._bits]).to(value.dtype)
        flat = value.to("cpu", torch.float32).reshape(-1).numpy().copy()
        kept = flat != 0
        if kept.any():
            centroids = cluster(flat[kept], 1 << self._bits)
            flat[kept] = centroids[nearest(flat[kept], centroids)]
        return torch.from_numpy(flat).reshape(value.shape).to(value.device, value.dtype)

    def hold(self, module: nn.Module) -> Hold:
        return Hold() if isinstance(self._bits, str) else Hold(shared=self.names)

    def settle(self, module: nn.Module) -> None:
        if isinstance(self._bits, str):
            own = dict(module.named_parameters())
            with torch.no_grad():
                for name in self.names:
                    own[name].copy_(self._rounded(own[name]))


@dataclass(frozen=True)
class Composed(Scheme):
    """Several schemes: their projections in order; `keep` belongs to the first that prunes."""

    schemes: tuple[Scheme, ...]

    def prepare(self, module: nn.Module, inputs: Any = None, size: int | None = None) -> Prepared:
        parts: list[Prepared] = []
        for scheme in self.schemes:
            parts.append(scheme.prepare(module, inputs, size))
            if parts[-1].prunes:
                size = None
        if sum(part.prunes for part in parts) != 1:
            raise UsageError(
                "of a tuple of schemes exactly one prunes by keep; give the others a keep of their own: Prune(keep=0.1)"
            )
        return _Composed(self, parts)

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.schemes))})"


class _Composed(Prepared):
    prunes = True

    def __init__(self, scheme: Composed, parts: Sequence[Prepared]):
        self._scheme, self._parts = scheme, list(parts)
        self._main = next(part for part in parts if part.prunes)
        self.size = self._main.size
        self.names = tuple(dict.fromkeys(name for part in parts for name in part.names))

    def project(self, values: Mapping[str, Tensor], keep: float) -> Values:
        found = {name: values[name].detach() for name in self.names}
        for part in self._parts:
            found |= part.project(found, keep)
        return found

    def hold(self, module: nn.Module) -> Hold:
        held = [part.hold(module) for part in self._parts]
        return Hold(
            tuple(dict.fromkeys(name for one in held for name in one.zeros)),
            tuple(dict.fromkeys(name for one in held for name in one.shared)),
        )

    def thin(self, module: nn.Module, keep: float) -> nn.Module:
        for part in self._parts:
            module = part.thin(module, keep)
        return module

    def settle(self, module: nn.Module) -> None:
        for part in self._parts:
            part.settle(module)

    def key(self, keep: float) -> object:
        return self._main.key(keep)

    def snap(self, keep: float) -> float:
        return self._main.snap(keep)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for part in self._parts for note in part.notes)


def scheme_of(scheme: Any) -> Scheme:
    """A scheme as it is, a tuple or list of schemes as one. Raises UsageError for anything else."""
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, (tuple, list)) and scheme and all(isinstance(each, Scheme) for each in scheme):
        return scheme[0] if len(scheme) == 1 else Composed(tuple(scheme))
    raise UsageError(f"scheme is Prune(), Structure(), Quantize() or a tuple of them, not {scheme!r}")
