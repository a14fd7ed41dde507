"""`promises` for the ways in that take a training: `nearzip.torch.Saver`, and PyTorch's distributed checkpoints."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from nearzip.bounds import Bound, Lossless, NoPromise, Statistics, Update, violations
from nearzip.network.arrays import to_torch
from nearzip.recipes import recipe_type
from nearzip.tensors import Array, as_array, is_float
from nearzip.testing.pairs import Pair
from nearzip.torch import Saver
from nearzip.torch.dcp import NearzipReader, NearzipWriter
from nearzip.torch.plans import FINER

__all__ = ["TRAININGS", "check_training"]


def check_training(pair: Pair, entrance: str) -> None:
    """Save a pair's base and tensors by one of `TRAININGS`, and check what is restored. Raises AssertionError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TRAININGS[entrance](pair)
    except AssertionError as error:
        raise AssertionError(f"pair {pair.seed}, {entrance}, {pair.how}: {error}") from error


class _Network(nn.Module):
    """A pair's tensors: floating-point weights and biases are parameters, all else and every third are buffers."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        super().__init__()
        made: dict[int, torch.Tensor] = {}
        for i, (name, array) in enumerate(tensors.items()):
            lossy = is_float(array.dtype) and i % 3 < 2
            # One array under two names is one parameter: a tied head.
            value = made.setdefault(2 * id(array) + lossy, to_torch(array))
            if lossy:
                made[2 * id(array) + lossy] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, False)
                self.register_parameter(_plain(name), made[2 * id(array) + lossy])  # type: ignore[arg-type]
            else:
                self.register_buffer(_plain(name), value)


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _before(pair: Pair) -> dict[str, Array]:
    """What a training held a step earlier: the same names and shapes, other values."""
    held = pair.base or {}
    fits = {name: held.get(name) for name in pair.tensors}
    return {
        name: was if was is not None and (was.dtype, was.shape) == (array.dtype, array.shape) else array
        for name, array in pair.tensors.items()
        for was in [fits[name]]
    }


def _check(name: str, array: Array, restored: Any, bound: Bound) -> None:
    flat, back = array.reshape(-1), as_array(name, restored).reshape(-1)
    assert back.dtype == flat.dtype, f"{name} is {back.dtype}, was {flat.dtype}"
    tolerance = bound.tolerance(Statistics.of(flat) if is_float(flat.dtype) else Statistics())
    outside = violations(flat, back, tolerance)
    assert not outside.size, f"{name}: {outside.size} values are outside {bound}"


def _one_bound(pair: Pair) -> Bound | None:
    bound = pair.bound.get("*") if isinstance(pair.bound, dict) else pair.bound
    return None if isinstance(bound, Update) else bound  # the first save has no base


def _by_saver(pair: Pair) -> None:
    recipe = recipe_type(pair.method).from_options(pair.options)
    bound = recipe.resolve_bound(_one_bound(pair))
    if isinstance(bound, NoPromise) or recipe.fallback == "restored":
        return
    network = _Network(pair.tensors)
    with tempfile.TemporaryDirectory() as folder:
        with Saver(f"{folder}/s", bound=bound, method=pair.method, options=pair.options or None, moments=None) as saver:
            saver.save(_Network(_before(pair)), step=0)
            saver.save(network, step=1)
        back = _Network(_before(pair))
        Saver(f"{folder}/s").restore(back)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    restored = back.state_dict()
    for name, array in pair.tensors.items():
        mine = _plain(name)
        if mine not in parameters:
            own: Bound = Lossless()
        else:
            value = getattr(bound, "value", None)
            own = type(bound)(value / FINER) if value is not None and array.ndim < 2 else bound  # type: ignore[call-arg]
        _check(name, array, restored[mine], own)


def _by_dcp(pair: Pair) -> None:
    bound = _one_bound(pair)
    if isinstance(bound, NoPromise):
        return
    with tempfile.TemporaryDirectory() as folder:
        writer = NearzipWriter(f"{folder}/s", bound=bound, moments=None)
        for tensors in (_before(pair), pair.tensors):
            save(_state(tensors), storage_writer=writer, no_dist=True)
        back = _state({name: np.zeros_like(array) for name, array in pair.tensors.items()})
        load(back, storage_reader=NearzipReader(f"{folder}/s"), no_dist=True)
    for name, array in pair.tensors.items():
        lossy = bound is not None and is_float(array.dtype) and array.ndim > 1
        _check(name, array, back["model"][name], bound if lossy and bound is not None else Lossless())
        _check(f"master of {name}", array, back["optim"]["master"][name], Lossless())


def _state(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Weights, and exact copies of them that an optimizer holds."""
    return {
        "model": {name: to_torch(array) for name, array in tensors.items()},
        "optim": {"master": {name: to_torch(array) for name, array in tensors.items()}},
    }


#: Ways in that take a training.
TRAININGS: dict[str, Callable[[Pair], None]] = {"saver": _by_saver, "dcp": _by_dcp}
