"""The methods of this package, through its public functions."""

from __future__ import annotations

from experiments.peers.base import Peer, Setting, Tensors, absolute

#: Relative errors of Delta-DNN's relative mode, around the 1 % to 10 % of the paper.
_POINTWISE = (0.003, 0.01, 0.03, 0.06, 0.1)


class _Method(Peer):
    method: str

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        import nearzip as nz

        bounds = {"abs": nz.Absolute, "pwrel": nz.PointwiseRelative, "rms": nz.Rms, "lossless": lambda _: nz.Lossless()}
        ((kind, value),) = setting.items()
        options = {"mode": "relative"} if self.method == "delta-dnn" and kind == "pwrel" else None
        held = None if value == "no base" else base
        return nz.compress(new, base=held, method=self.method, bound=bounds[kind](value), options=options).to_bytes()

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        import nearzip as nz

        return nz.decompress(data, base=base)


class NearzipPeer(_Method):
    name = "nearzip"
    method = "nearzip"

    def settings(self, unit: float) -> list[Setting]:
        return absolute(unit)


class NearzipLosslessPeer(_Method):
    name = "nearzip lossless"
    method = "nearzip"
    lossless = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"lossless": "no base"}, {"lossless": "base"}]


class DeltaDnnPeer(_Method):
    """Equations 1 and 2 as printed."""

    name = "delta-dnn absolute"
    method = "delta-dnn"

    def settings(self, unit: float) -> list[Setting]:
        return absolute(unit)


class DeltaDnnRelativePeer(_Method):
    name = "delta-dnn relative"
    method = "delta-dnn"

    def settings(self, unit: float) -> list[Setting]:
        return [{"pwrel": value} for value in _POINTWISE]
