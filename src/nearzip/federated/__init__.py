"""Federated learning: small updates both ways, every reply checked, nothing lost. NumPy only, for any engine."""

from nearzip.federated.client import Client
from nearzip.federated.server import Server, Update

__all__ = ["Client", "Server", "Update"]
