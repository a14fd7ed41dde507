"""Error-bounded compressors of scientific data, on the difference to the base as one vector."""

from __future__ import annotations

import numpy as np

from experiments.lab.peers.base import DeltaPeer, Setting, absolute


class Sz3Peer(DeltaPeer):
    """SZ3 as it comes: interpolation and Lorenzo predictors."""

    name = "SZ3"
    needs = ("pysz",)
    algorithm = "INTERP_LORENZO"

    def settings(self, unit: float) -> list[Setting]:
        return absolute(unit)

    def encode_values(self, delta: np.ndarray, setting: Setting) -> bytes:
        from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

        config = szConfig((delta.size,))
        config.errorBoundMode = szErrorBoundMode.ABS
        config.absErrorBound = setting["abs"]
        config.cmprAlgo = getattr(szAlgorithm, self.algorithm)
        packed, _ = sz.compress(delta, config)
        return bytes(packed.tobytes())

    def decode_values(self, data: bytes, size: int) -> np.ndarray:
        from pysz import sz

        values: np.ndarray = sz.decompress(np.frombuffer(data, np.uint8).copy(), np.float32, (size,))[0]
        return values


class Sz3NoPredictionPeer(Sz3Peer):
    """SZ3 without its predictors, which do not help on weights."""

    name = "SZ3 NOPRED"
    algorithm = "NOPRED"


class ZfpPeer(DeltaPeer):
    """ZFP with an absolute tolerance: it rounds it down to a power of two and stays well below."""

    name = "ZFP"
    needs = ("zfpy",)

    def settings(self, unit: float) -> list[Setting]:
        return [{"abs": float(f"{unit * factor:.4g}")} for factor in (1, 2, 4, 8, 16)]

    def encode_values(self, delta: np.ndarray, setting: Setting) -> bytes:
        import zfpy

        packed: bytes = zfpy.compress_numpy(delta, tolerance=setting["abs"])
        return packed

    def decode_values(self, data: bytes, size: int) -> np.ndarray:
        import zfpy

        values: np.ndarray = zfpy.decompress_numpy(data)
        return values
