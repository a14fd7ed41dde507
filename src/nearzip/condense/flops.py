"""Floating-point operations of one forward pass: PyTorch's counter, with formulas for what it counts as zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from nearzip.condense.groups import outputs_of

__all__ = ["count_flops"]

aten = torch.ops.aten
Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _lstm(inputs: Shape, weight: Shape, recurrent: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """inputs (time, batch, features), weight (4 hidden, features), recurrent (4 hidden, hidden)."""
    steps = inputs[0] * inputs[1]
    return 2 * steps * weight[0] * (weight[1] + recurrent[1])


def _multi_head(
    query: Shape, key: Shape, value: Shape, width: int, heads: int, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """query, key and value (batch, tokens, width): three projections, attention, and the projection of its outputs."""
    n, tokens, _width = query
    projections = 2 * n * width * width * (2 * tokens + key[1] + value[1])
    per_head = (
        (n, heads, tokens, width // heads),
        (n, heads, key[1], width // heads),
        (n, heads, value[1], width // heads),
    )
    attention = sdpa_flop_count(*per_head)  # type: ignore[no-untyped-call]
    return projections + int(attention)


def _encoder_layer(inputs: Shape, width: int, heads: int, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """inputs (batch, tokens, width); the last weights of the operator are those of the feed-forward."""
    wide = rest[11][0]  # the first feed-forward weight, (wide, width)
    feed_forward = 4 * inputs[0] * inputs[1] * width * int(wide)
    return _multi_head(inputs, inputs, inputs, width, heads) + feed_forward


#: What torch 2.13 counts as zero on a CPU.
_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mkldnn_rnn_layer: _lstm,
    aten._native_multi_head_attention: _multi_head,
    aten._transformer_encoder_layer_fwd: _encoder_layer,
}


def count_flops(module: nn.Module, inputs: Any) -> int:
    """Floating-point operations of one forward pass on a batch, two for each multiplication with its addition.

    Matrix products, convolutions and attention, as the network runs in evaluation mode; what costs little beside
    them (activations, norms, sums) counts nothing. Layers that run sparse count as dense ones.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with counter:
        outputs_of(module, inputs)
    return int(counter.get_total_flops())
