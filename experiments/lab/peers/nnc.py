"""NNCodec, the reference software of ISO/IEC 15938-17, on the difference to the base."""

from __future__ import annotations

import math
import sys
import tempfile
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from experiments.lab.peers.base import Flat, Peer, Setting, Tensors

#: It wants a dozen packages at its import that coding a dictionary of arrays never calls.
_STUBBED = ("torchvision", "torchvision.datasets", "torchvision.transforms", "cv2", "h5py", "pandas", "ptflops",
            "torchmetrics", "flwr", "wandb", "sentencepiece",
            "timm", "sklearn", "sklearn.metrics", "tqdm")  # fmt: skip

#: Biases and norms get a quarter of the weights' step. The default of a fixed QP -75 costs 0.031 bits per
#: parameter on the late transformer pair at QP -48 (0.866 against 0.834 at QP -52 for them).
FINER = 8


class _Stub(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - a package, to the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or MagicMock()


def codec() -> Any:
    for name in _STUBBED:
        sys.modules.setdefault(name, _Stub(name))
    from nncodec import nn

    return nn


class NncodecTrellisPeer(Peer):
    """Dependent quantization (a trellis of 8 states) and CABAC; a QP is a quarter of a power of two."""

    name = "NNCodec trellis"
    needs = ("numpy<2", "torch", "nncodec==2.1.3")
    trellis = True

    def settings(self, unit: float) -> list[Setting]:
        # A trellis has two quantizers, each with twice the step.
        middle = round(4 * math.log2(2 * unit)) - (3 if self.trellis else 0)
        return [{"qp": middle + shift} for shift in (-4, -2, 0, 2, 4)]

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        delta = {name: w - base[name] for name, w in new.items() if w.dtype == np.float32}
        with tempfile.TemporaryDirectory() as folder:
            how = {"qp": setting["qp"], "nonweight_qp": setting["qp"] - FINER, "use_dq": self.trellis}
            how |= {"results": folder, "verbose": False}
            stream = codec().encode(delta, how)
        return Flat.of(new).pack(bytes(stream))

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        header, rest, payload = Flat.unpack(data)
        delta = codec().decode(bytearray(payload), {"verbose": False})
        parts = [w + delta[name].reshape(w.shape) for name, w in base.items() if w.dtype == np.float32]
        return Flat(header, np.concatenate([w.reshape(-1) for w in parts]).astype(np.float32), rest).tensors()


class NncodecPeer(NncodecTrellisPeer):
    """Plain rounding instead of the trellis."""

    name = "NNCodec plain"
    trellis = False
