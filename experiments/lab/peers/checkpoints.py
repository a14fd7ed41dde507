"""The package `lc-checkpoint` on PyPI, which is not by LC-Checkpoint's authors, run as its documentation says."""

from __future__ import annotations

import pickle

import numpy as np

from experiments.lab.peers.base import DeltaPeer, Setting


class LcPackagePeer(DeltaPeer):
    """Release 0.5.2. Its file is a pickle of code words and code table.

    `scale`: what the difference is multiplied by before, and divided by after. The package rounds differences to whole
    numbers before it takes their exponents, so that an update as its documentation gives it (1) becomes zero.
    """

    name = "lc-checkpoint package"
    needs = ("lc-checkpoint==0.5.2", "dahuffman==0.4.2", "pathos", "torch")
    prunes = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"scale": scale} for scale in (1e6, 1e4, 1.0)]

    def encode_values(self, delta: np.ndarray, setting: Setting) -> bytes:
        from lc_checkpoint import main

        encoded, codec = main.compress_data(delta.astype(np.float64) * setting["scale"], num_bits=32, k=5)
        return np.float64(setting["scale"]).tobytes() + pickle.dumps((encoded, codec, 0))

    def decode_values(self, data: bytes, size: int) -> np.ndarray:
        from lc_checkpoint import main

        encoded, codec, _ = pickle.loads(data[8:])  # noqa: S301 - the bench's own bytes
        # Its decoder divides by a hundred, which its encoder does not multiply by.
        delta = 100 * main.decode_data(encoded, codec) / np.frombuffer(data[:8])[0]
        return delta.astype(np.float32)
