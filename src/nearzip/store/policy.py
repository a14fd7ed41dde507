"""Which version a new one is coded against, and what older ones become. Hu et al., ICPP 2020, section 4.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearzip.errors import CorruptError, UsageError

__all__ = ["KINDS", "MAX_DEPTH", "Policy", "parse_policy", "policy_from_json"]

KINDS = ("forward", "backward", "hop")
#: No version is more deltas away from a keyframe; readers refuse more.
MAX_DEPTH = 64


@dataclass(frozen=True)
class Policy:
    """How versions are chained.

    Parameters
    ----------
    kind : {"forward", "backward", "hop"}
        forward: each version is a delta to the one before. backward: the newest is a keyframe, and the one before
        becomes a delta to it. hop: deltas to the one before, and a keyframe every `every` versions.
    every : int
        Versions from keyframe to keyframe for hop, at least 1.
    depth : int
        Most deltas between a version and its keyframe, 1 .. 64.
    pays : float
        A delta larger than this share of the last keyframe is tried as a keyframe, and the smaller is kept.

    Examples
    --------
    >>> str(Policy("hop", every=8)), parse_policy("hop:8") == Policy("hop", every=8)
    ('hop:8', True)
    """

    kind: str = "hop"
    every: int = 10
    depth: int = MAX_DEPTH
    pays: float = 0.8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a policy is {', '.join(KINDS)} (or hop:8 for a keyframe every 8), not {self.kind!r}")
        if type(self.every) is not int or self.every < 1:
            raise UsageError(f"policy: every is a positive number of versions, not {self.every!r}")
        if type(self.depth) is not int or not 1 <= self.depth <= MAX_DEPTH:
            raise UsageError(f"policy: depth is 1 to {MAX_DEPTH}, not {self.depth!r}")
        if isinstance(self.pays, bool) or not isinstance(self.pays, (int, float)) or not self.pays > 0:
            raise UsageError(f"policy: pays is a positive share, not {self.pays!r}")

    @property
    def longest(self) -> int:
        """The largest number of deltas between a version and its keyframe."""
        return min(self.depth, self.every - 1) if self.kind == "hop" else self.depth

    def wants_keyframe(self, depth_of_latest: int) -> bool:
        """Whether the version after one of that depth is a keyframe."""
        return self.kind == "backward" or depth_of_latest + 1 > self.longest

    def __str__(self) -> str:
        return f"hop:{self.every}" if self.kind == "hop" and self.every != Policy.every else self.kind


def parse_policy(text: Policy | str) -> Policy:
    """forward, backward, hop, or hop:8. Raises UsageError."""
    if isinstance(text, Policy):
        return text
    if not isinstance(text, str):
        raise UsageError(f"a policy is a string or nearzip.store.Policy, not {text!r}")
    kind, colon, every = text.partition(":")
    if not colon:
        return Policy(kind)
    if kind != "hop" or not every.isdecimal():
        raise UsageError(f"cannot read the policy {text!r}; write {', '.join(KINDS)} or hop:8")
    return Policy(kind, every=int(every))


def policy_from_json(document: Any) -> Policy:
    """From a store's settings (untrusted). Raises CorruptError."""
    if type(document) is not dict or set(document) != {"kind", "every", "depth", "pays"}:
        raise CorruptError("the policy makes no sense")
    try:
        return Policy(**document)
    except (UsageError, TypeError) as error:
        raise CorruptError(str(error)) from None
