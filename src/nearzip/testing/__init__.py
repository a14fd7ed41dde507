"""Checks that any stage, recipe or archive can be put through, ours or a plug-in's."""

from nearzip.testing.damage import Damage, Outcome, examine, harm
from nearzip.testing.sealing import seal, true_digests, unseal

__all__ = ["Damage", "Outcome", "examine", "harm", "seal", "true_digests", "unseal"]
