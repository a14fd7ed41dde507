"""Versions of a network under a path or URL: small, verified, and restored bit for bit. docs/store.md."""

from nearzip.store.backends import remote as remote
from nearzip.store.damage import Damage, VerifyReport
from nearzip.store.log import Version
from nearzip.store.policy import Policy
from nearzip.store.pulling.pull import PullReport, pull
from nearzip.store.repository import Store

__all__ = ["Damage", "Policy", "PullReport", "Store", "VerifyReport", "Version", "pull"]
