"""The inputs in a batch: found, exchanged for others, cut to some rows. For measures that call networks themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nearzip.errors import UsageError
from nearzip.measures.measure import Predictions

__all__ = ["first_rows", "inputs_of", "one_prediction_a_row", "real_inputs_of", "rows_of", "with_inputs"]

#: What Hugging Face models call their inputs.
_NAMES = ("inputs_embeds", "pixel_values", "input_values", "input_features", "input_ids")


def _key(batch: Mapping[str, Any]) -> str:
    known = [name for name in _NAMES if name in batch]
    if known:
        return known[0]
    tensors = [name for name, value in batch.items() if isinstance(value, Tensor) and name != "labels"]
    if len(tensors) != 1:
        raise UsageError(f"cannot tell which part of a batch is its input: {', '.join(map(str, batch))}")
    return tensors[0]


def inputs_of(batch: Any) -> Tensor:
    """The inputs, one row a sample. Raises UsageError."""
    found = batch[_key(batch)] if isinstance(batch, Mapping) else batch
    found = found[0] if isinstance(found, (tuple, list)) else found
    if not isinstance(found, Tensor) or not found.dim():
        raise UsageError(f"the inputs of a batch are a tensor with a row for each sample, not {type(found).__name__}")
    return found


def real_inputs_of(batch: Any, what: str) -> Tensor:
    """Inputs that have a gradient. Raises UsageError for tokens."""
    found = inputs_of(batch)
    if not found.is_floating_point():
        raise UsageError(f"{what} needs inputs of real numbers; these are {str(found.dtype).removeprefix('torch.')}")
    return found


def rows_of(batch: Any, rows: Tensor | slice) -> Any:
    """These rows of a batch; a row may be asked for several times."""
    n = len(inputs_of(batch))

    def cut(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == n else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return tuple(map(cut, batch)) if isinstance(batch, (tuple, list)) else cut(batch)


def with_inputs(batch: Any, inputs: Tensor) -> Any:
    """The batch with other inputs, `k` for each of its rows in turn if there are more: row 0 k times, row 1, .."""
    n = len(inputs_of(batch))
    if len(inputs) != n:
        batch = rows_of(batch, torch.arange(n, device=inputs.device).repeat_interleave(len(inputs) // n))
    if isinstance(batch, Mapping):
        return {**batch, _key(batch): inputs}
    return (inputs, *batch[1:]) if isinstance(batch, (tuple, list)) else inputs


def first_rows(batch: Predictions, n: int) -> Any:
    """The first `n` rows of the batch that the predictions are of."""
    whole = inputs_of(batch.batch)
    return batch.batch if n >= len(whole) else rows_of(batch.batch, slice(0, n))


def one_prediction_a_row(batch: Predictions, what: str) -> int:
    """The number of rows. Raises UsageError where a row has several predictions, or some do not count."""
    n = len(inputs_of(batch.batch))
    if len(batch.logits) != n:
        raise UsageError(f"{what} needs one prediction for each input; there are {len(batch.logits)} for {n} inputs")
    return n
