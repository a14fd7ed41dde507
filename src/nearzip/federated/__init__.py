"""Federated learning: small updates both ways, every reply checked, nothing lost. NumPy only, for any engine."""

from nearzip.federated.algorithm import Round, residual_accumulation
from nearzip.federated.client import Client
from nearzip.federated.files import Averaged, average_updates, compress_update
from nearzip.federated.server import Server, Update

__all__ = [
    "Averaged",
    "Client",
    "Round",
    "Server",
    "Update",
    "average_updates",
    "compress_update",
    "residual_accumulation",
]
