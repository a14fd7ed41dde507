"""Programs that nearzip is measured beside, each an adapter of a few lines; heavy imports wait until they are used."""

from __future__ import annotations

from experiments.lab.peers.base import Peer, Setting, Tensors
from experiments.lab.peers.checkpoints import LcPackagePeer
from experiments.lab.peers.excp import ExcpPeer
from experiments.lab.peers.general import Blosc2Peer, GzipPeer, LzmaPeer, OpenzlPeer, PcodecPeer, ZstdPeer
from experiments.lab.peers.models import Z4aiPeer, ZipnnPeer
from experiments.lab.peers.nnc import NncodecPeer, NncodecTrellisPeer
from experiments.lab.peers.ours import (
    BloscMethodPeer,
    DeepReducePeer,
    DeltaDnnPeer,
    DeltaDnnRelativePeer,
    GzipMethodPeer,
    LcCheckpointPeer,
    LzmaMethodPeer,
    NearzipCalibratedPeer,
    NearzipLatticePeer,
    NearzipLosslessPeer,
    NearzipPeer,
    NearzipUnbiasedPeer,
    QdCompressorPeer,
    QsgdPeer,
    SbcPeer,
    SkCompressPeer,
    StcPeer,
    Sz3MethodPeer,
    TopKPeer,
    ZfpMethodPeer,
    ZstdMethodPeer,
)
from experiments.lab.peers.pruned import DeepCompressionPeer, DeepSzNearzipPeer, DeepSzPeer, WeightlessPeer
from experiments.lab.peers.scientific import Sz3NoPredictionPeer, Sz3Peer, ZfpPeer

__all__ = ["METHODS", "PEERS", "Peer", "Setting", "Tensors", "by_name"]

#: This package's own.
METHODS: tuple[type[Peer], ...] = (
    NearzipPeer,
    NearzipUnbiasedPeer,
    NearzipLatticePeer,
    NearzipCalibratedPeer,
    DeltaDnnPeer,
    DeltaDnnRelativePeer,
    QdCompressorPeer,
    LcCheckpointPeer,
    TopKPeer,
    StcPeer,
    SbcPeer,
    SkCompressPeer,
    DeepReducePeer,
    QsgdPeer,
    Sz3MethodPeer,
    ZfpMethodPeer,
    DeepSzPeer,
    DeepSzNearzipPeer,
    DeepCompressionPeer,
    WeightlessPeer,
    NearzipLosslessPeer,
    BloscMethodPeer,
    ZstdMethodPeer,
    LzmaMethodPeer,
    GzipMethodPeer,
)
PEERS: tuple[type[Peer], ...] = (
    NncodecTrellisPeer,
    NncodecPeer,
    Sz3NoPredictionPeer,
    Sz3Peer,
    ZfpPeer,
    ExcpPeer,
    LcPackagePeer,
    Z4aiPeer,
    ZipnnPeer,
    PcodecPeer,
    OpenzlPeer,
    Blosc2Peer,
    ZstdPeer,
    LzmaPeer,
    GzipPeer,
)


def by_name(name: str) -> Peer:
    """A method or peer of that name."""
    return next(peer for peer in METHODS + PEERS if peer.name == name)()
