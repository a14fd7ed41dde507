"""Error feedback: train on what would be restored, update the original (QD-Compressor, section 4.4, Algorithm 1)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn, optim

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.torch.quantizers import Quantizer, quantizer, quantizer_of_saver
from nearzip.torch.saver import Saver

__all__ = ["ErrorFeedback"]


class ErrorFeedback:
    """Forward and backward on the restored network M*, the update on M, at every step; the loop stays as it is.

    Before the first forward pass after an update the parameters are replaced by what a reader would restore of them,
    bit for bit, if the model were saved then; before the optimizer's step the original is put back. So gradients are
    those of M*, with gradient accumulation too, and a gradient scaler may skip steps as it does. `state_dict()` gives
    M; evaluating the model evaluates M*.

    Parameters
    ----------
    model : nn.Module
        Its floating-point parameters are replaced. Buffers stay as they are, but count where the method compares
        tensors with each other, because a snapshot has them.
    optimizer : torch.optim.Optimizer
    method, bound, options
        As for ``nearzip.compress(model.state_dict(), base, method, bound, options=options)``: what that archive
        restores is what is trained on. "qd-compressor" is computed on the parameters' device; other methods run their
        whole encoder at every step.
    base : mapping of str to array
        What the reader holds, for methods that depend on it; by names in the state dict.
    saver : Saver
        In place of these four: what a checkpoint of this saver restores is what is trained on. Exact for methods that
        restore the same with any base ("qd-compressor", and all without a base); for others the version before
        decides as well, and the two may differ by as much as the bound allows.
    update : {"original", "restored"}
        "restored" updates M* itself and forgets M: the paper's comparison, which loses accuracy.
    quantize : callable
        Instead of a method: takes and returns a dict of tensors by name, the parameters.

    Attributes
    ----------
    seconds : float
        Spent quantizing and swapping.

    Raises
    ------
    UsageError
        The model is compiled (torch.compile keeps the values that it traced with), or spread over processes; a saver
        and a method.

    Notes
    -----
    Costs one copy of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        method: str | None = None,
        *,
        bound: Bound | str | None = None,
        options: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
        saver: Saver | None = None,
        update: Literal["original", "restored"] = "original",
        quantize: Quantizer | None = None,
    ):
        if update not in ("original", "restored"):
            raise UsageError(f"update is 'original' or 'restored', not {update!r}")
        _refuse_compiled(model)
        self._parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        if any(hasattr(p, "full_tensor") for p in self._parameters.values()):
            raise UsageError("error feedback needs whole parameters; these are spread over processes (DTensor)")
        self._model = model
        self._only_parameters = quantize is not None or saver is not None
        if saver is not None:
            if any(given is not None for given in (method, bound, options, base, quantize)):
                raise UsageError("a saver has a method, a bound and options of its own; give either it or those")
            self._quantize = quantizer_of_saver(*saver.codes_parameters)
        else:
            self._quantize = quantize or quantizer(method or "qd-compressor", bound, options, base)
        self._keeps_original = update == "original"
        self._originals: dict[str, torch.Tensor] | None = None
        self._holds_restored = False
        self.seconds = 0.0
        self._handles: list[Any] = [
            model.register_forward_pre_hook(lambda module, arguments: self.use_restored(), prepend=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self._updated()),
            model.register_state_dict_pre_hook(lambda *_: self.use_original()),  # type: ignore[no-untyped-call]
            model.register_load_state_dict_pre_hook(lambda *_: self._updated()),  # type: ignore[no-untyped-call]
        ]

    # what the parameters hold

    def use_restored(self) -> None:
        """Put M* into the parameters, if it is not there. Raises UsageError under torch.compile."""
        if torch.compiler.is_compiling():
            raise UsageError(_COMPILED)
        if self._holds_restored:
            return
        begin = time.perf_counter()
        live = {name: parameter.detach() for name, parameter in self._parameters.items()}
        restored = self._quantize(live if self._only_parameters else self._snapshot(live))
        with torch.no_grad():
            if self._keeps_original:
                self._keep(live)
            for name, parameter in live.items():
                parameter.copy_(restored[name])
        self._holds_restored = True
        self.seconds += time.perf_counter() - begin

    def use_original(self) -> None:
        """Put M back into the parameters, if M* is there."""
        if not self._holds_restored or not self._keeps_original or self._originals is None:
            return
        begin = time.perf_counter()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._originals[name])
        self._holds_restored = False
        self.seconds += time.perf_counter() - begin

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """A block in which `model` is M, forward passes included."""
        self.use_original()
        quantize, self._quantize = self._quantize, dict
        keeps, self._keeps_original = self._keeps_original, True
        try:
            yield
        finally:
            self.use_original()
            self._quantize, self._keeps_original = quantize, keeps
            self._holds_restored = False

    def close(self) -> None:
        """Put M back and leave model and optimizer as they were."""
        self.use_original()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _snapshot(self, live: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All tensors of a state dict: a method may look at all of them before it codes one."""
        state = {name: value for name, value in self._model.state_dict().items() if isinstance(value, torch.Tensor)}
        return {**state, **live}

    # hooks

    def _keep(self, live: Mapping[str, torch.Tensor]) -> None:
        if self._originals is None or any(self._originals[n].device != t.device for n, t in live.items()):
            self._originals = {name: tensor.clone() for name, tensor in live.items()}
            return
        for name, tensor in live.items():
            self._originals[name].copy_(tensor)

    def _before_step(
        self, optimizer: optim.Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put M back; a closure runs the model inside the step, so after it as well."""
        self.use_original()
        # The optimizer itself is the first argument.
        at = next((i for i, value in enumerate(arguments) if i and callable(value)), None)
        if at is not None:
            return (*arguments[:at], self._wrapped(arguments[at]), *arguments[at + 1 :]), named
        if callable(named.get("closure")):
            return arguments, {**named, "closure": self._wrapped(named["closure"])}
        return None

    def _wrapped(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            # Whoever searches along a line has moved M since the last call.
            self._updated()
            result = closure()
            self.use_original()
            return result

        return run

    def _updated(self) -> None:
        self._holds_restored = False


_COMPILED = (
    "error feedback does not work under torch.compile: the compiled network would not see the parameters being "
    "replaced; train without compiling it"
)


def _refuse_compiled(model: nn.Module) -> None:
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if compiled:
        raise UsageError(_COMPILED)
