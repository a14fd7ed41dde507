"""Checks that any stage, recipe or archive can be put through, ours or a plug-in's."""

from nearzip.testing.damage import Damage, Outcome, examine, harm
from nearzip.testing.sealing import seal, seal_columns, true_digests, unseal, unseal_columns

__all__ = ["Damage", "Outcome", "examine", "harm", "seal", "seal_columns", "true_digests", "unseal", "unseal_columns"]
