"""The methods of this package, through its public functions."""

from __future__ import annotations

from experiments.lab.peers.base import SWEEP, Peer, Setting, Tensors, absolute

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


class NearzipCalibratedPeer(_Method):
    """Calibrated with the network and batches of its training data; the step is the setting."""

    name = "nearzip calibrated"
    method = "nearzip"

    def settings(self, unit: float) -> list[Setting]:
        return [{"step": float(f"{unit * factor:.4g}")} for factor in (4, 8, 16, 32, 64, 128)]

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        import nearzip as nz
        from experiments.lab import evaluate
        from nearzip import calibrate

        name = evaluate.network_of(new)
        if name is None:  # what the worker warms up with
            return nz.compress(new, base, options=setting).to_bytes()
        module, batches = evaluate.loaded(name, new), evaluate.batches_of(name)
        return calibrate.compress(module, batches, base, **setting).to_bytes()


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


class _Optioned(_Method):
    """A method that promises nothing: its options are the sweep."""

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        import nearzip as nz

        return nz.compress(new, base=base, method=self.method, options=setting).to_bytes()


class NearzipUnbiasedPeer(_Optioned):
    """Steps without a bound, updates as long as they were."""

    name = "nearzip unbiased"
    method = "nearzip"

    def settings(self, unit: float) -> list[Setting]:
        return [{"step": float(f"{2 * unit * factor:.4g}"), "unbiased": True} for factor in (*SWEEP, 2 * SWEEP[-1])]


class NearzipLatticePeer(_Optioned):
    """Steps without a bound, groups of eight values at points of E8."""

    name = "nearzip lattice"
    method = "nearzip"

    def settings(self, unit: float) -> list[Setting]:
        return [{"step": float(f"{2 * unit * factor:.4g}"), "lattice": True} for factor in (*SWEEP, 2 * SWEEP[-1])]


class QdCompressorPeer(_Optioned):
    """Fixed widths, and 4 to 8 bits by entropy."""

    name = "qd-compressor"
    method = "qd-compressor"

    def settings(self, unit: float) -> list[Setting]:
        return [*({"bits": bits} for bits in (16, 10, 9, 8, 7, 6)), {"b_max": 8}]


class LcCheckpointPeer(_Optioned):
    name = "lc-checkpoint"
    method = "lc-checkpoint"

    def settings(self, unit: float) -> list[Setting]:
        return [{"bits": bits} for bits in (5, 4, 3, 2)]


class TopKPeer(_Optioned):
    """Sparse updates, here without the residual that federated learning keeps for what is not sent."""

    name = "topk"
    method = "topk"
    prunes = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"keep": keep} for keep in (0.5, 0.2, 0.1, 0.05, 0.01)]


class StcPeer(TopKPeer):
    name = "stc"
    method = "stc"


class SbcPeer(TopKPeer):
    name = "sbc"
    method = "sbc"


class SkCompressPeer(TopKPeer):
    name = "skcompress"
    method = "skcompress"


class DeepReducePeer(TopKPeer):
    """Bloom filter with policy P0, values by QSGD."""

    name = "deepreduce"
    method = "deepreduce"


class QsgdPeer(_Optioned):
    """Changes rounded at random to levels of their bucket's norm."""

    name = "qsgd"
    method = "qsgd"
    prunes = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"levels": levels} for levels in (511, 127, 31, 7, 1)]


class Sz3MethodPeer(_Method):
    """SZ3 as a method: the bound is kept by patching, tensor by tensor."""

    name = "sz3 method"
    method = "sz3"

    def settings(self, unit: float) -> list[Setting]:
        return absolute(unit)


class ZfpMethodPeer(Sz3MethodPeer):
    name = "zfp method"
    method = "zfp"


class BloscMethodPeer(NearzipLosslessPeer):
    name = "blosc method"
    method = "blosc"


class _AloneMethodPeer(_Method):
    """A general-purpose compressor on the raw bytes: a base would not help it."""

    lossless = True
    uses_base = False

    def settings(self, unit: float) -> list[Setting]:
        return [{"lossless": "no base"}]


class GzipMethodPeer(_AloneMethodPeer):
    name = "gzip method"
    method = "gzip"


class ZstdMethodPeer(_AloneMethodPeer):
    name = "zstd method"
    method = "zstd"


class LzmaMethodPeer(_AloneMethodPeer):
    name = "lzma method"
    method = "lzma"
