"""Versions of a network under a path or URL: small, verified, and restored bit for bit. docs/store.md."""

from nearzip.store.log import Version
from nearzip.store.policy import Policy
from nearzip.store.pull import PullReport, pull
from nearzip.store.repository import Store
from nearzip.store.verify import Damage, VerifyReport

__all__ = ["Damage", "Policy", "PullReport", "Store", "VerifyReport", "Version", "pull"]
