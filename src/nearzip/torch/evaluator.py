"""Makes an evaluate function for `nearzip.tune` of a module, a loader and metrics."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearzip.budget.trials import name_of
from nearzip.caching import cached_property
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.tensors import as_array
from nearzip.torch.arrays import digest_of, to_torch

__all__ = ["METRICS", "Evaluator", "evaluator", "predict_classes"]

#: Each takes logits (n, classes), targets (n,) and the original's logits, and returns a sum over the n predictions.
_Sum = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Takes something to call like the module, and a batch; returns logits (.., classes) and targets (..) or None.
Predict = Callable[[Callable[..., Any], Any], tuple[Tensor, Tensor | None]]
#: PyTorch's mark of a target that does not count.
_IGNORED = -100
#: Beyond it the exponential overflows.
_MOST_LOSS = 700.0


def _top(k: int) -> _Sum:
    def correct(logits: Tensor, targets: Tensor, original: Tensor) -> Tensor:
        best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
        return (best == targets.unsqueeze(-1)).any(-1).sum()

    return correct


def _minus_loss(logits: Tensor, targets: Tensor, original: Tensor) -> Tensor:
    return -functional.cross_entropy(logits.double(), targets, reduction="sum")


def _agreement(logits: Tensor, targets: Tensor, original: Tensor) -> Tensor:
    return (logits.argmax(-1) == original.argmax(-1)).sum()


def _minus_kl(logits: Tensor, targets: Tensor, original: Tensor) -> Tensor:
    ours, theirs = (functional.log_softmax(x.double(), dim=-1) for x in (logits, original))
    return -functional.kl_div(ours, theirs, reduction="sum", log_target=True)


#: Sums over predictions; the metric is their mean ("perplexity": minus the exponential of the mean loss).
METRICS: dict[str, _Sum] = {
    "top1": _top(1),
    "top5": _top(5),
    "loss": _minus_loss,
    "perplexity": _minus_loss,
    "agreement": _agreement,
    "kl": _minus_kl,
}
_NEED_TARGETS = frozenset({"top1", "top5", "loss", "perplexity"})
_NEED_ORIGINAL = frozenset({"agreement", "kl"})


def evaluator(
    module: nn.Module,
    loader: Iterable[Any],
    metric: str | Sequence[str] = "top1",
    *,
    predict: Predict | None = None,
) -> Evaluator:
    """An evaluate function: how well `module` does with other tensors in place of its own.

    Parameters
    ----------
    module : torch.nn.Module
        The original network. It is copied as it is now; batch norm and dropout run as in `eval()`, on the device where
        the parameters are.
    loader : iterable of batches
        Read from the start at every call, so it must give the same batches every time (`shuffle=False`, no generator).
        A batch is (inputs, targets); or a dict as Hugging Face models take it, with `labels` (if they have the shape of
        `input_ids`, predictions are compared with the next token); or inputs alone where no targets are needed.
    metric : str or sequence of str
        Higher is always better:

        =============  =====================================================  ==============================
        metric         what is returned                                       max_loss=x allows
        =============  =====================================================  ==============================
        "top1"         share of targets that are the most likely class        x less, 0.002 is 0.2 points
        "top5"         share of targets among the five most likely            x less
        "loss"         minus the mean cross entropy, in nats                  x more cross entropy
        "perplexity"   minus exp(mean cross entropy)                          x more perplexity
        "agreement"    share of predictions with the original's first class   x of the predictions to change
        "kl"           minus KL(original || restored), nats per prediction    a divergence of x
        =============  =====================================================  ==============================

        One name gives a function that returns a float, several one that returns a dict.
    predict : callable
        predict(module, batch) -> logits (.., classes), targets (..) or None, in place of what is done by default, which
        is `predict_classes`.

    Returns
    -------
    Evaluator
        evaluate(tensors) for `nearzip.tune`. Names are those of `module.state_dict()`; what the tensors lack is the
        module's own. It can be pickled, as far as module, loader and `predict` can, and called by several threads.

    Raises
    ------
    UsageError
        An unknown metric; when called: tensors that are not the module's, a loader that shuffles.

    Notes
    -----
    "agreement" and "kl" keep the original's logits of the whole loader in memory. Sums are taken in float64.

    Examples
    --------
    >>> import torch, nearzip as nz
    >>> from nearzip.torch import evaluator
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Linear(20, 4)
    >>> batches = [(torch.randn(64, 20), torch.zeros(64, dtype=torch.int64))]
    >>> plan = nz.tune(net.state_dict(), evaluate=evaluator(net, batches, "kl"), max_loss=1e-3)
    >>> 0 <= plan.losses["kl"] <= 1e-3
    True
    """
    return Evaluator(module, loader, metric, predict)


class Evaluator:
    """What `evaluator` returns. `name` is what a plan calls it, `identity` what tells it from others of that name."""

    def __init__(
        self,
        module: nn.Module,
        loader: Iterable[Any],
        metric: str | Sequence[str],
        predict: Predict | None = None,
    ):
        self.metrics = (metric,) if isinstance(metric, str) else tuple(metric)
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UsageError(f"a metric is one of {', '.join(METRICS)}, not {unknown[0] if unknown else 'nothing'!r}")
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise UsageError("the loader is read at every call; give a list or a DataLoader")
        self.metric = self.metrics[0] if len(self.metrics) == 1 else None
        self.name = f"nearzip.torch.evaluator({', '.join(self.metrics)})"
        # A copy: the module may be trained on, and its mode is its owner's.
        self._module = copy.deepcopy(module).eval()
        self._loader = loader
        self._predict = predict or predict_classes
        self._names = _canonical_names(self._module)
        self._spare: list[nn.Module] = []
        self._original: list[tuple[bytes, Tensor]] | None = None
        if _NEED_ORIGINAL & set(self.metrics):
            self._original = [(digest_of(batch), logits) for batch, logits, _ in self._batches({})]

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, float] | float:
        """Metrics of the module with these tensors, named as the module's. Raises UsageError."""
        sums = dict.fromkeys(self.metrics, 0.0)
        n = n_batches = 0
        for batch, logits, targets in self._batches(self._substituted(tensors)):
            original = logits if self._original is None else self._original_of(n_batches, batch)
            flat, flat_original, kept = _flat(logits, original, targets)
            for name in self.metrics:
                if targets is None and name in _NEED_TARGETS:
                    raise UsageError(f"metric {name!r} needs targets; the loader's batches are (inputs, targets)")
                sums[name] += float(METRICS[name](flat, kept, flat_original))
            n += len(flat)
            n_batches += 1
        if not n or (self._original is not None and n_batches != len(self._original)):
            raise UsageError(f"the loader gave {n_batches} batches; the same ones are needed at every call")
        means = {name: total / n for name, total in sums.items()}
        if "perplexity" in means:
            means["perplexity"] = -math.exp(min(-means["perplexity"], _MOST_LOSS))
        return means[self.metrics[0]] if len(means) == 1 else means

    @cached_property
    def identity(self) -> str:
        """Of module, batches, metrics and `predict`, as hexadecimal digits. Reads the loader, unless that was done.

        The module: its layers as it prints them, and all of its tensors. `predict` by its name, and its own `identity`
        if it has one.
        """
        known = [found for found, _ in self._original or ()]
        batches = known or [digest_of(batch) for batch in self._loader]
        named = [*self._module.named_parameters(), *self._module.named_buffers()]
        tensors = [digest(name.encode(), digest_of(tensor)) for name, tensor in named]
        # What prints itself with an address would never be the same again.
        layers = re.sub(r"0x[0-9a-f]+", "", f"{type(self._module).__qualname__} {self._module}")
        how = (self.metrics, name_of(self._predict), getattr(self._predict, "identity", None))
        return digest(layers.encode(), repr(how).encode(), *tensors, b"batches", *batches).hex()

    def _batches(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Any, Tensor, Tensor | None]]:
        """Each batch, with the logits and targets that the module gives with these tensors in place of its own."""
        first = next(itertools.chain(self._module.parameters(), self._module.buffers()), torch.empty(0))

        with self._borrowed() as module:

            def stand_in(*args: Any, **kwargs: Any) -> Any:
                return torch.func.functional_call(module, dict(tensors), args, kwargs)

            for batch in self._loader:
                with torch.inference_mode():
                    logits, targets = self._predict(stand_in, _moved(batch, first.device))
                yield batch, logits, targets

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[nn.Module]:
        """A copy of the module that nobody else uses: while it is called with other tensors, they are in its place."""
        try:
            module = self._spare.pop()
        except IndexError:
            module = copy.deepcopy(self._module)
        try:
            yield module
        finally:
            self._spare.append(module)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_spare": []}

    def _original_of(self, i: int, batch: Any) -> Tensor:
        assert self._original is not None
        if i >= len(self._original) or self._original[i][0] != digest_of(batch):
            raise UsageError(
                "the loader gives other batches than before; take shuffle=False and no random augmentation"
            )
        return self._original[i][1]

    def _substituted(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """As the module's tensors: their device and dtype, tied ones under one name."""
        own = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        found = {}
        for name, value in tensors.items():
            if name not in self._names:
                raise UsageError(f"tensor {name!r}: the module has none of that name")
            mine = own[self._names[name]]
            tensor = to_torch(as_array(name, value), copy=False)
            if tensor.shape != mine.shape:
                raise UsageError(f"tensor {name!r} is {list(tensor.shape)}, the module's is {list(mine.shape)}")
            found[self._names[name]] = tensor.to(mine.device, mine.dtype)
        return found


def predict_classes(module: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor | None]:
    """Logits and targets of a batch: (inputs, targets), a dict with `labels`, or inputs alone.

    Dicts go to the module by keyword, and with `input_ids` and labels of their shape the prediction of each token is
    compared with the next one, as for causal language models.
    """
    if isinstance(batch, Mapping):
        targets = batch.get("labels")
        logits = _logits(module(**{name: value for name, value in batch.items() if name != "labels"}))
        ids = batch.get("input_ids")
        if targets is not None and ids is not None and targets.shape == ids.shape:
            return logits[:, :-1], targets[:, 1:]
        return logits, targets
    if isinstance(batch, (tuple, list)):
        return _logits(module(batch[0])), batch[1] if len(batch) > 1 else None
    return _logits(module(batch)), None


def _logits(output: Any) -> Tensor:
    """Of a tensor, an object with `logits`, a dict with "logits", or a tuple that begins with them."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(output, (tuple, list)):
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise UsageError("the module does not return logits, (.., classes); give predict=")
    return output


def _flat(logits: Tensor, original: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(n, classes), (n, classes), (n,), without targets that cross entropy ignores; without targets, zeros."""
    logits, original = logits.flatten(0, -2), original.flatten(0, -2).to(logits.device)
    if targets is None:
        return logits, original, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    targets = targets.flatten()
    if len(targets) != len(logits):
        raise UsageError(f"{len(logits)} predictions and {len(targets)} targets; give predict=")
    kept = targets != _IGNORED
    return (logits, original, targets) if bool(kept.all()) else (logits[kept], original[kept], targets[kept])


def _canonical_names(module: nn.Module) -> dict[str, str]:
    """Names in the state dict to the one name of the parameter or buffer; tied parameters have several."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_moved(value, device) for value in batch)
    return batch
