"""What every packed index of format 3 may refer to: part of the format, never changed.

Texts as they stand in many indices, the commonest last. Files are as readable without the program that wrote them as
they are with this text (docs/format.md).
"""

from __future__ import annotations

__all__ = ["DICTIONARY"]

_NAMES = (
    "running_mean running_var num_batches_tracked lora_A.weight lora_B.weight conv1.weight conv2.weight conv3.weight "
    "downsample.0.weight bn1.weight bn1.bias layer1.0. layer2.0. features.0.weight classifier.0.weight fc1.weight "
    "fc2.weight head.weight encoder.layer. attention.self.query.weight key.weight value.weight intermediate.dense. "
    "output.LayerNorm.weight transformer.h.0.ln_1.weight attn.c_attn.weight attn.c_proj.weight mlp.c_fc.weight "
    "model.embed_tokens.weight model.layers.0.self_attn.q_proj.weight k_proj.weight v_proj.weight o_proj.weight "
    "mlp.gate_proj.weight up_proj.weight down_proj.weight input_layernorm.weight post_attention_layernorm.weight "
    "lm_head.weight model.norm.weight conv1.weightbias2.weightbiasfc.weightbias weight bias"
)
_STAGES = (
    '{"id":"prune","keep":0.09},{"id":"sparse","values":[{"id":"codebook","clusters":32},{"id":"huffman"}],"gaps":'
    '[{"id":"symbol-bytes"},{"id":"smallest-of","of":"gzip zstd blosc"}],"gap_bits":5,"fill":false}'
    '[{"id":"range-quantize","bits":8,"delta":true},{"id":"symbol-bytes"},{"id":"lzma"}]'
    '[{"id":"ordered-delta"},{"id":"run-lengths"},{"id":"zstd"}][{"id":"raw-bytes"},{"id":"gzip"}]'
    '[{"id":"subtract-base"},{"id":"e8-step","step":0.0'
    '[{"id":"subtract-base"},{"id":"top-mean","keep":0.01},{"id":"golomb","bits":6}]'
    '[{"id":"sparse","values":[{"id":"ordered-bits"},{"id":"rans","split":"planes"}],"gaps":[{"id":"rans"}],'
    '"gap_bits":32,"fill":false}][{"id":"log-step","eps":0.00,"delta":true},{"id":"rans"}]'
    '[{"id":"step-then-bits","step":0.0,"delta":true},{"id":"rans"}]'
)
_HEAD = (
    '"metadata":{"format":"pt"},"gone":[],"aliases":{"1":0},"tree":"matches":{"0":["","float32",[1,1]]},'
    '"method":{"name":"delta-dnn","options":{"eps":null,"mode":null,"backend":"rle+lzma"}},"bound":{"kind":"no promise"'
    '"kind":"abs","value":0.001},"kind":"rel","value":0.001},"kind":"pwrel","value":0.01},'
    '"others":[{"name":"nearzip","options":{"tensors":["per":"tensor",'
    '{"writer":"nearzip 0.1.0","method":{"name":"nearzip","options":{"step":null,"unbiased":false,"finer":0.02,'
    '"lattice":false}},"bound":{"kind":"lossless"},"pipelines":[[{"id":"ordered-bits"},{"id":"rans","split":"planes"}]]}'
    '"bound":{"kind":"lossless"},"pipelines":[[{"id":"context-delta"}]]}'
    '"bound":{"kind":"rms","value":0.01},"pipelines":[[{"id":"uniform-step","step":0.0"},{"id":"rans"}],'
    '[{"id":"subtract-base"},{"id":"uniform-step","step":0.0},{"id":"rans"}],[{"id":"context-delta"}]]}'
    '{"writer":"nearzip 0.1.0","method":{"name":"nearzip","options":{"step":null,"unbiased":false,"finer":0.02,'
    '"lattice":false}},"bound":{"kind":"upd","value":0.1,"per":"network","resolved":0.00'
    '},"pipelines":[[{"id":"subtract-base"},{"id":"uniform-step","step":0.00'
)
DICTIONARY = (_NAMES + _STAGES + _HEAD).encode()
