"""Makes an evaluator for `nearzip.tune` of a module, a loader and measures."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.budget.evaluators import Evaluation, name_of
from nearzip.budget.intervals import check_confidence
from nearzip.caching import cached_property
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure, Predictions
from nearzip.measures.registry import MEASURES, measures_of
from nearzip.network.arrays import digest_of
from nearzip.network.calls import Caller, Names, call, captured, check_layer, device_of, last_linear, moved, output_of
from nearzip.network.fitting import fit
from nearzip.torch.observing import (
    DataSet,
    Documents,
    Figures,
    Loader,
    Original,
    Units,
    aligned,
    data_sets,
    original_of,
    per_prediction,
    predictions,
)

__all__ = ["METRICS", "Evaluator", "evaluator", "predict_classes"]

#: Takes the module and a batch; returns logits (.., classes) and targets (..) or None.
Predict = Callable[[Any, Any], tuple[Tensor, Tensor | None]]
Watch = Callable[[str, Any, Predictions], None]
#: Names of measures.
METRICS = tuple(MEASURES)


def evaluator(
    module: nn.Module,
    loader: Loader | Mapping[str, Loader],
    metric: str | Measure | Sequence[str | Measure] = "top1",
    *,
    predict: Predict | None = None,
    confidence: float | None = None,
    documents: Documents | None = None,
    features: str | None = None,
) -> Evaluator:
    """An evaluator: measures the predictions of `module` with other tensors in place of its own.

    Parameters
    ----------
    module : torch.nn.Module
        The original network. It is copied as it is now; batch norm and dropout run as in `eval()`, on the device where
        the parameters are.
    loader : iterable of batches, or mapping of str to iterables
        Read from the start at every call, so it must give the same batches every time (`shuffle=False`, no generator).
        A batch is (inputs, targets); or a dict as Hugging Face models take it, with `labels` (if they have the shape of
        `input_ids`, predictions are compared with the next token); or inputs only where no targets are needed. Several
        data sets have names, which their metrics begin with: ``{"code": a, "chat": b}`` gives "code/kl" and "chat/kl".
    metric : str, Measure, or a sequence of them
        Higher is always better:

        =============  =====================================================  ==============================
        metric         what is returned                                       max_loss=x allows
        =============  =====================================================  ==============================
        "top1"         share of targets that are the most likely class        x less, 0.002 is 0.2 points
        "top5"         share of targets among the five most likely; any k     x less
        "class/*"      the same as "top1" for each class: "class/0", ..       x less in that class
        "loss"         minus the mean cross entropy, in nats                  x more cross entropy
        "perplexity"   minus exp(mean cross entropy)                          x more perplexity
        "agreement"    share of predictions with the original's first class   x of the predictions to change
        "churn"        minus the share with another first class               the same
        "flips"        "flips/worse": minus the share that went wrong,        x of the predictions to go wrong
                       "flips/better": the share that became right
        "kl"           minus KL(original || restored), nats per prediction    a divergence of x
        "kl/*"         with "kl/median", "kl/p99", "kl/p99.9": its quantiles  a quantile of x
        "cost"         minus the mean cost of changed classes                 a cost of x
        "embedding"    of the features: "embedding/cosine", "/distance",      x less
                       "/neighbours", "/structure"
        "distance"     minus the relative distance of the outputs             a distance of x
        "attribution"  share of what both networks look at; by saliency,      x less
                       or "attribution/occlusion", "/integrated-gradients"
        "boundary/*"   distance to another class over the original's, at      x less
                       most 1: "boundary/random", "boundary/worst"
        "robust"       accuracy on perturbed inputs: "robust/linf:2", ..      x less
        =============  =====================================================  ==============================

        `nearzip.correctness` has them as objects, with more options, and the class to write one of your own.
    predict : callable
        predict(module, batch) -> logits (.., classes), targets (..) or None, in place of what is done by default, which
        is `predict_classes`.
    confidence : float
        Searches with this evaluator bound losses with this confidence; see `nearzip.tune`.
    documents : callable
        documents(batch) -> the document of each row of the batch, where several rows belong to one. Predictions of one
        document are not independent, which counts for confidence. Default: each row is a document of its own.
    features : str
        Name of the layer whose inputs are the features. Default: the last linear layer.

    Returns
    -------
    Evaluator
        evaluate(tensors) for `nearzip.tune`. Names are those of `module.state_dict()`; what the tensors lack is the
        module's own. One metric gives a float, several a dict. It can be pickled, as far as module, loader and the
        functions can, and called by several threads.

    Raises
    ------
    UsageError
        An unknown metric; when called: tensors that are not the module's, a loader that shuffles, targets out of range.

    Notes
    -----
    Metrics that compare with the original keep its logits of the whole loader in memory. Sums are taken in float64.

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
    return Evaluator(module, loader, metric, predict, confidence, documents, features)


class Evaluator:
    """What `evaluator` returns. `name` is what a plan calls it, `identity` what tells it from others of that name."""

    def __init__(
        self,
        module: nn.Module,
        loader: Loader | Mapping[str, Loader],
        metric: str | Measure | Sequence[str | Measure],
        predict: Predict | None = None,
        confidence: float | None = None,
        documents: Documents | None = None,
        features: str | None = None,
        keep: bool = True,
    ):
        if not isinstance(module, nn.Module):
            raise UsageError(f"the network is a torch.nn.Module, not {type(module).__name__}")
        if not isinstance(metric, (str, Measure, Sequence)):
            raise UsageError(f"a metric is one of {', '.join(METRICS)}, not {metric!r}")
        given = (metric,) if isinstance(metric, (str, Measure)) else tuple(metric)
        if not given:
            raise UsageError(f"a metric is one of {', '.join(METRICS)}, not 'nothing'")
        self.measures = tuple(measures_of(given))
        self.metrics = tuple(each if isinstance(each, str) else str(each) for each in given)
        self.metric = self.metrics[0] if len(self.metrics) == 1 else None
        self.name = f"nearzip.torch.evaluator({', '.join(self.metrics)})"
        self.confidence = None if confidence is None else check_confidence(confidence)
        # A copy: the module may be trained on, and its mode is its owner's.
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._predict, self._documents = predict or predict_classes, documents
        self._names = Names(self._module)
        self._spare: list[nn.Module] = []
        self._reference: Evaluator | None = None  # who has the original, if this module is thinned
        self._layer = None
        if features is not None:
            check_layer(self._module, features)
        if any(measure.needs_features for measure in self.measures):
            self._layer = features or last_linear(self._module)
        self._data = data_sets(loader)
        self._paired = self._needs("needs_original") or self._needs("needs_features")
        if self._paired and keep:
            for data in self._data:
                data.originals = [
                    Original(digest_of(batch), logits, found) for batch, logits, _, found in self._batches(data, {})
                ]

    def _needs(self, what: str) -> bool:
        return any(getattr(measure, what) for measure in self.measures)

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, float] | float:
        """Metrics of the module with these tensors, named as the module's. Raises UsageError."""
        found = dict(self.evaluation(tensors).metrics)
        return next(iter(found.values())) if self.metric is not None and len(found) == 1 else found

    def evaluation(self, tensors: Mapping[str, Any]) -> Evaluation:
        """The same, with the samples that the metrics are computed from. Raises UsageError."""
        if self._names.thinned(self._module, tensors):
            return self._fitted_to(tensors).evaluation(tensors)
        fitted = self._names.fitted(self._module, tensors)
        found = Figures()
        for data in self._data:
            measures = [measure.fresh() for measure in self.measures]
            for _, seen in self._seen(data, fitted, self._paired):
                _update(measures, seen)
            found.add(data.prefix, measures)
        return found.evaluation()

    def compared(self, tensors: Mapping[str, Any], watch: Watch | None = None) -> tuple[Evaluation, Evaluation]:
        """The original's evaluation and that with these tensors, in one pass over the data.

        Each network runs once for each batch, or only the restored one where the original's outputs are kept.

        Parameters
        ----------
        watch : callable(prefix, batch, predictions)
            Called with every batch: the name of its data set with a slash, or "".
        """
        if self._names.thinned(self._module, tensors):
            return self._fitted_to(tensors).compared(tensors, watch)
        fitted = self._names.fitted(self._module, tensors)
        before, after = Figures(), Figures()
        for data in self._data:
            pairs = [[measure.fresh() for measure in self.measures] for _ in range(2)]
            for batch, seen in self._seen(data, fitted, True):
                _update(pairs[0], seen.of_original)
                _update(pairs[1], seen)
                if watch is not None:
                    watch(data.prefix, batch, seen)
            before.add(data.prefix, pairs[0])
            after.add(data.prefix, pairs[1])
        return before.evaluation(), after.evaluation()

    def networks(self, tensors: Mapping[str, Any]) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
        """The module with these tensors, and the original: from a batch to logits, one row a prediction."""
        if self._names.thinned(self._module, tensors):
            return self._fitted_to(tensors).networks(tensors)[0], self._borrowing({})
        fitted = self._names.fitted(self._module, tensors)
        return self._borrowing(fitted), self._borrowing({})

    def _fitted_to(self, tensors: Mapping[str, Any]) -> Evaluator:
        """The same evaluator for a thinned network: the module with the shapes of these tensors."""
        other = copy.copy(self)
        other._module, other._spare = fit(copy.deepcopy(self._module), tensors), []
        other._names = Names(other._module)
        other._reference = self
        return other

    def on(self, loader: Loader | Mapping[str, Loader]) -> Evaluator:
        """An evaluator of other inputs, batch by batch in place of the loader's, such as images that lost detail.

        What is compared with the original is compared with its outputs for the loader's own inputs. Raises UsageError
        for another number of batches.
        """
        other = copy.copy(self)
        vars(other).pop("identity", None)
        other._data = data_sets(loader)
        if [data.prefix for data in other._data] != [data.prefix for data in self._data]:
            raise UsageError("other inputs have the same data sets as the loader")
        for own, data in zip(self._data, other._data, strict=True):
            if own.originals is None and self._paired:
                raise UsageError("other inputs need the original's outputs; make the evaluator with keep=True")
            if own.originals is not None:
                digests = [digest_of(batch) for batch in data.loader]
                if len(digests) != len(own.originals):
                    raise UsageError(f"the loader gave {len(digests)} batches in place of {len(own.originals)}")
                data.originals = [replace(o, digest=d) for o, d in zip(own.originals, digests, strict=True)]
        return other

    def _seen(self, data: DataSet, tensors: Mapping[str, Tensor], paired: bool) -> Iterator[tuple[Any, Predictions]]:
        """Each batch, and its predictions; `paired`: with the original's, which are computed unless they are kept."""
        n = n_batches = 0
        units = Units(self._documents)
        for batch, logits, targets, features in self._batches(data, tensors):
            original = None
            if data.originals is not None:
                original = original_of(data, n_batches, batch)
            elif paired:
                original = self._original(batch)
            seen = predictions(logits, targets, units.of(batch, logits), original, features)
            if self._needs("needs_gradients"):
                seen = self._callable(seen, batch, tensors)
            yield batch, seen
            n += len(seen.logits)
            n_batches += 1
        if not n and data.originals is None:
            raise UsageError("the loader gave no samples; there is nothing to measure on")
        if not n or (data.originals is not None and n_batches != len(data.originals)):
            raise UsageError(f"the loader gave {n_batches} batches; the same ones are needed at every call")

    def _original(self, batch: Any) -> Original:
        """The original's outputs for a batch, which are not kept."""
        if self._reference is not None:
            return self._reference._original(batch)
        with torch.inference_mode(not self._needs("needs_gradients")), torch.no_grad(), self._borrowed() as own:
            logits, _, features = self._predicted(own, moved(batch, device_of(own)), {})
        return Original(b"", logits, features)

    def observed(self, module: nn.Module, batch: Any) -> Predictions:
        """A batch's predictions by a module that is being trained, beside the original's: what `Measure.loss` takes.

        Gradients reach the module through `logits` and `features`.
        """
        there = moved(batch, device_of(self._module))
        with torch.no_grad(), self._borrowed() as own:
            first, _, original_features = self._predicted(own, there, {})
        here = moved(batch, device_of(module))
        logits, targets, features = self._predicted(module, here, {})
        units = torch.arange(len(logits))
        original = Original(b"", first, original_features)
        seen = predictions(logits, targets, per_prediction(units, logits), original, features)
        return replace(seen, batch=here, network=self._calls(module), reference=self._calls(self._module))

    @cached_property
    def identity(self) -> str:
        """Digest of module, batches, metrics and `predict`, in hexadecimal. Reads the loader once.

        The module: its layers as it prints them, and all of its tensors. `predict` by its name, and its own `identity`
        if it has one.
        """
        batches = []
        for data in self._data:
            known = [original.digest for original in data.originals or ()]
            batches += [data.prefix.encode()] if data.prefix else []
            batches += known or [digest_of(batch) for batch in data.loader]
        named = [*self._module.named_parameters(), *self._module.named_buffers()]
        tensors = [digest(name.encode(), digest_of(tensor)) for name, tensor in named]
        # What prints itself with an address would never be the same again.
        layers = re.sub(r"0x[0-9a-f]+", "", f"{type(self._module).__qualname__} {self._module}")
        how = (self.metrics, name_of(self._predict), getattr(self._predict, "identity", None), *self._more)
        return digest(layers.encode(), repr(how).encode(), *tensors, b"batches", *batches).hex()

    @property
    def _more(self) -> list[object]:
        """Part of the identity, where anything was said besides names of metrics and `predict`."""
        configured = [m.identity for m in self.measures if m.identity != str(m)]
        documents = [] if self._documents is None else [name_of(self._documents)]
        return [*configured, *documents, *([] if self._layer is None else [self._layer])]

    def _batches(
        self, data: DataSet, tensors: Mapping[str, Tensor]
    ) -> Iterator[tuple[Any, Tensor, Tensor | None, Tensor | None]]:
        """Each batch with the logits, targets and features that the module gives with these tensors."""
        with self._borrowed() as module:
            device = device_of(module)
            for batch in data.loader:
                with torch.inference_mode(not self._needs("needs_gradients")), torch.no_grad():
                    logits, targets, features = self._predicted(module, moved(batch, device), tensors)
                yield batch, logits, targets, features

    def _predicted(
        self, module: nn.Module, batch: Any, tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        caller = Caller(module, self._predict)
        if self._layer is None:
            return *_pair(caller(batch, tensors)), None
        with captured(module, self._layer) as inputs:
            logits, targets = _pair(caller(batch, tensors))
        if len(inputs) != 1:
            raise UsageError(
                f"layer {self._layer!r} is called {len(inputs)} times for a batch; name another with features="
            )
        features = inputs[0].flatten(0, -2)
        if len(features) != logits[..., 0].numel():
            features = aligned(inputs[0], logits, self._layer)
        return logits, targets, features

    def _callable(self, seen: Predictions, batch: Any, tensors: Mapping[str, Tensor]) -> Predictions:
        """The predictions with the networks to call, for measures that need gradients."""
        there = moved(batch, device_of(self._module))
        return replace(seen, batch=there, network=self._borrowing(tensors), reference=self._borrowing({}))

    def _borrowing(self, tensors: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
        def run(batch: Any) -> Tensor:
            with self._borrowed() as module:
                return self._calls(module, tensors)(batch)

        return run

    def _calls(self, module: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> Callable[[Any], Tensor]:
        """From a batch to logits, one row a prediction."""
        return lambda batch: Caller(module, self._predict)(batch, tensors)[0].flatten(0, -2)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[nn.Module]:
        """A copy of the module for one caller: while it is called with other tensors, they are in its place."""
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


def _pair(found: Any) -> tuple[Tensor, Tensor | None]:
    """What `predict` returns. Raises UsageError."""
    if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[0], Tensor):
        raise UsageError("predict= returns logits, (.., classes), and targets or None")
    return found[0], found[1]


def _update(measures: Sequence[Measure], seen: Predictions) -> None:
    for measure in measures:
        with torch.set_grad_enabled(measure.needs_gradients):
            measure.update(seen)


def predict_classes(module: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor | None]:
    """Logits and targets of a batch: (inputs, targets), a dict with `labels`, or inputs only.

    Dicts go to the module by keyword, and with `input_ids` and labels of their shape the prediction of each token is
    compared with the next one, as for causal language models.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, np.ndarray):
        raise UsageError("the inputs of a batch are a NumPy array, networks take tensors; see torch.from_numpy")
    logits = output_of(call(module, batch), "predict")
    if logits.dim() < 2:
        raise UsageError("the module does not return logits, (.., classes); give predict=")
    if isinstance(batch, Mapping):
        targets, ids = batch.get("labels"), batch.get("input_ids")
        if targets is not None and ids is not None and targets.shape == ids.shape:
            return logits[:, :-1], targets[:, 1:]
        return logits, targets
    has_targets = isinstance(batch, (tuple, list)) and len(batch) > 1
    return logits, batch[1] if has_targets else None
