"""How fast networks run: measured side by side; and linear layers of mostly zeros as sparse ones."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.errors import UsageError
from nearzip.network.calls import call, device_of, moved

__all__ = ["SparseLinear", "Speed", "compare_speed", "sparse"]

#: Share of zeros from which on a sparse product is faster than a dense one (docs/condense.md).
SPARSE_FROM = 0.9
#: Seconds for one side of one round: short ones are repeated within the round.
_ROUND_SECONDS = 0.02
_ROUNDS = 15


@dataclass(frozen=True)
class Speed:
    """Throughput of a network beside the original's.

    Parameters
    ----------
    ratio : float
        Median over the rounds of the original's time by the network's.
    lower, upper : float
        Quartiles of these ratios.
    seconds, original_seconds : float
        Medians for one batch.
    threads, rounds : int
    """

    ratio: float
    lower: float
    upper: float
    seconds: float
    original_seconds: float
    threads: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_speed(
    original: nn.Module, module: nn.Module, inputs: Any, threads: int = 1, rounds: int = _ROUNDS
) -> Speed:
    """Time two networks in turns on the same batch: original, network, original, ..

    On a busy machine the turns slow down alike, so that the ratio of a round says more than two separate timings.
    """
    if inputs is None:
        raise UsageError("throughput needs inputs=, a batch to run the networks on")
    original, module = (copy.deepcopy(network).eval() for network in (original, module))
    inputs = moved(inputs, device_of(original))
    with _threads(threads), torch.inference_mode():
        repeats = max(1, round(_ROUND_SECONDS / max(_seconds(original, inputs, 2), 1e-9)))
        _seconds(module, inputs, 2)
        pairs = [(_seconds(original, inputs, repeats), _seconds(module, inputs, repeats)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    lower, _, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Speed(statistics.median(ratios), lower, upper, after, before, threads, rounds)


def _seconds(module: nn.Module, inputs: Any, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call(module, inputs)
    return (time.perf_counter() - begin) / repeats


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SparseLinear(nn.Module):
    """A linear layer whose weight is stored by rows of nonzeros (CSR): (.., in) -> (.., out). For inference only."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR")
            self.register_buffer("weight", linear.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        # Tensors in rows of nonzeros have no storage that deepcopy could copy.
        found = SparseLinear.__new__(SparseLinear)
        nn.Module.__init__(found)
        found.in_features, found.out_features, found.training = self.in_features, self.out_features, self.training
        found.register_buffer("weight", self.weight.clone())
        found.register_buffer("bias", None if self.bias is None else self.bias.clone())
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.reshape(-1, self.in_features)
        found: Tensor = torch.mm(self.weight, flat.t()).t()
        if self.bias is not None:
            found = found + self.bias
        return found.reshape(*inputs.shape[:-1], self.out_features)


def sparse(module: nn.Module, zeros: float = SPARSE_FROM) -> nn.Module:
    """A copy of a network whose linear layers run sparse where at least the share `zeros` of their weights is zero.

    Convolutions stay dense: PyTorch has no sparse ones; so do layers with hooks. The copy is for inference.
    """
    if not 0 < zeros <= 1:
        raise UsageError(f"zeros is a share, above 0 and at most 1, not {zeros!r}")
    found = copy.deepcopy(module)
    if _is_sparse(found, zeros):
        assert isinstance(found, nn.Linear)
        return SparseLinear(found)
    replaced: dict[nn.Module, SparseLinear] = {}
    for parent in list(found.modules()):
        for name, layer in list(parent._modules.items()):  # a layer may have several names
            if layer is not None and _is_sparse(layer, zeros):
                assert isinstance(layer, nn.Linear)
                setattr(parent, name, replaced.get(layer) or replaced.setdefault(layer, SparseLinear(layer)))
    return found.eval()


def _is_sparse(layer: nn.Module, zeros: float) -> bool:
    if type(layer) is not nn.Linear or not layer.weight.numel() or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return bool((layer.weight == 0).sum() >= zeros * layer.weight.numel())
