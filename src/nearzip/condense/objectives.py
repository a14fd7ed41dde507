"""What a smaller network is worth: bytes, operations, throughput, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from nearzip.api import compress_quietly
from nearzip.condense.execution import compare_speed, sparse
from nearzip.condense.flops import count_flops
from nearzip.errors import Error, UsageError
from nearzip.tensors import Array, as_array

__all__ = ["NAMES", "Measured", "Objective", "tensors_of"]

NAMES = ("bytes", "flops", "throughput", "nonzeros16")
#: Differences below this are not worth a network with fewer weights: noise, for what is timed.
_NOISE = {"throughput": 0.02}


@dataclass(frozen=True)
class Measured:
    """The value of an objective for one network.

    Parameters
    ----------
    value : float
        Bytes, operations for the batch, items a second over the original's, or what the user's function returned.
    details : dict
        More of it, such as the quartiles of a throughput.
    """

    value: float
    details: Mapping[str, Any]


def tensors_of(module: nn.Module) -> dict[str, Array]:
    """The state of a module as arrays."""
    return {name: as_array(name, value) for name, value in module.state_dict().items()}


@dataclass(frozen=True)
class Objective:
    """The quantity that a search optimizes.

    Parameters
    ----------
    function : str or callable
        ================  ============================================================================
        "bytes"           the whole archive
        "flops"           operations of a forward pass on `inputs`, see `nearzip.condense.flops`
        "throughput"      batches a second over the original's, measured in turns on `inputs`
        "nonzeros16"      two bytes for each nonzero weight and no positions: how Condensa's tables
                          count, for tables only
        callable          function(module) -> a number, higher is better
        ================  ============================================================================
    inputs : batch or None
        Example inputs.
    threads, rounds : int
        Of the measurement of throughput.
    """

    function: str | Callable[[nn.Module], Any]
    inputs: Any = None
    threads: int = 1
    rounds: int = 15

    def __post_init__(self) -> None:
        if not callable(self.function) and self.function not in NAMES:
            raise UsageError(
                f"objective is one of {', '.join(NAMES)}, or a function of a module, not {self.function!r}"
            )
        if self.function in ("flops", "throughput") and self.inputs is None:
            raise UsageError(f"the objective {self.function!r} needs inputs=, a batch to run the network on")

    @property
    def name(self) -> str:
        return self.function if isinstance(self.function, str) else getattr(self.function, "__name__", "objective")

    @property
    def lower_is_better(self) -> bool:
        return self.function in ("bytes", "flops", "nonzeros16")

    @property
    def noise(self) -> float:
        """The relative difference below which two values count as equal."""
        return _NOISE.get(self.name, 0.0)

    def better(self, a: float, b: float) -> bool:
        """Whether value `a` is better than value `b` by more than the noise of measurement."""
        margin = self.noise * abs(b)
        return a < b - margin if self.lower_is_better else a > b + margin

    def gain(self, before: float, after: float) -> float:
        """The factor of improvement from `before` to `after`; above 1 where it is better."""
        over, under = (before, after) if self.lower_is_better else (after, before)
        return over / under if under else math.inf

    def original(self, module: nn.Module) -> Measured:
        """The value for the original, uncompressed network."""
        if self.function == "bytes":
            return Measured(float(sum(a.nbytes for a in tensors_of(module).values())), {})
        if self.function == "nonzeros16":
            return Measured(4.0 * _size(module), {"counted": "four bytes for each weight"})
        if self.function == "throughput":
            return Measured(1.0, {})
        return self.measure(module, module)

    def measure(self, module: nn.Module, original: nn.Module, n_bytes: int | None = None) -> Measured:
        """The value for a network, relative to the original where the objective is.

        `n_bytes`: of its archive; without it, the bytes are those of a lossless one.

        Raises
        ------
        UsageError
            A function of the user's returned no finite number.
        Error
            It raised.
        """
        if self.function == "bytes":
            return Measured(float(compress_quietly(tensors_of(module)).nbytes if n_bytes is None else n_bytes), {})
        if self.function == "flops":
            return Measured(float(count_flops(module, self.inputs)), {})
        if self.function == "nonzeros16":
            return Measured(2.0 * _nonzeros(module), {"counted": "two bytes for each nonzero, no positions"})
        if self.function == "throughput":
            speed = compare_speed(original, sparse(module), self.inputs, self.threads, self.rounds)
            return Measured(speed.ratio, speed.to_json())
        return Measured(self._own(module), {})

    def _own(self, module: nn.Module) -> float:
        assert callable(self.function)
        try:
            value = self.function(module)
        except Exception as error:
            raise Error(f"objective {self.name} raised {type(error).__name__}: {error}") from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"objective {self.name} returned {value!r}; it must return a finite number")
        return number


def _weights(module: nn.Module) -> list[Array]:
    return [as_array(name, p) for name, p in module.named_parameters()]


def _size(module: nn.Module) -> int:
    return sum(a.size for a in _weights(module))


def _nonzeros(module: nn.Module) -> int:
    return sum(int(np.count_nonzero(a)) for a in _weights(module))
