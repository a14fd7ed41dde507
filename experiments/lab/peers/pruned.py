"""The pruning methods of this package, as they come: nothing is retrained in this bench, and no base is used."""

from __future__ import annotations

from experiments.lab.peers.base import Peer, Setting, Tensors

#: Shares of the weights kept, from all down to where a network that is not retrained is long gone.
_KEEP = (1.0, 0.8, 0.6, 0.4, 0.2)


class _Pruning(Peer):
    """The setting is the method's options; `abs_kept` among them is the error bound of the weights that are kept."""

    method: str
    prunes = True
    uses_base = False

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        import nearzip as nz

        options = dict(setting)
        error = options.pop("abs_kept", None)
        bound = None if error is None else nz.Absolute(error)
        return nz.compress(new, method=self.method, bound=bound, options=options).to_bytes()

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        import nearzip as nz

        return nz.decompress(data)


class DeepSzPeer(_Pruning):
    name = "deepsz"
    method = "deepsz"

    def settings(self, unit: float) -> list[Setting]:
        return [{"keep": keep, "abs_kept": unit} for keep in _KEEP]


class DeepSzNearzipPeer(DeepSzPeer):
    name = "deepsz-nearzip"
    method = "deepsz-nearzip"


class DeepCompressionPeer(_Pruning):
    name = "deep-compression"
    method = "deep-compression"

    def settings(self, unit: float) -> list[Setting]:
        return [{"keep": keep, "bits": bits} for keep, bits in zip(_KEEP, (10, 8, 7, 6, 5), strict=True)]


class WeightlessPeer(_Pruning):
    """The largest layer in a filter, the others as they are."""

    name = "weightless"
    method = "weightless"

    def settings(self, unit: float) -> list[Setting]:
        slots = ((1.0, 256, 16), (0.8, 128, 16), (0.6, 64, 15), (0.4, 32, 13), (0.2, 16, 11))
        return [{"keep": keep, "clusters": clusters, "bits": bits} for keep, clusters, bits in slots]
