"""What `verify` reports, and which part of a store it is asked to look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearzip.errors import UsageError

__all__ = ["LEVELS", "Damage", "VerifyReport", "parse_subset"]

LEVELS = ("quick", "full", "deep")


@dataclass(frozen=True)
class Damage:
    """A file of the store that is damaged or missing.

    Parameters
    ----------
    path : str
        The file, relative to the store's URL.
    problem : str
    versions : tuple of int
        Versions that cannot be restored whole because of it.
    advice : str
    """

    path: str
    problem: str
    versions: tuple[int, ...] = ()
    advice: str = ""


@dataclass
class VerifyReport:
    """The result of `verify`.

    Parameters
    ----------
    level : {"quick", "full", "deep"}
    damages : list of Damage
    readable, unreadable : tuple of int
        Versions that can and cannot be restored, of those that were checked.
    notes : list of str
        Findings that are not damage: unreferenced files, a stale hint.
    n_versions, n_objects : int
        Versions and objects in the store.
    n_checked, n_bytes : int
        Objects whose content was read (deep: versions decoded), and bytes read.
    complete : bool
        Whether everything was checked; False for a subset, or if the time ran out.
    repaired, lost : list of str
        What `repair` restored, and what it could not.
    """

    level: str
    damages: list[Damage] = field(default_factory=list)
    readable: tuple[int, ...] = ()
    unreadable: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    n_versions: int = 0
    n_objects: int = 0
    n_checked: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    complete: bool = True
    repaired: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.damages


def parse_subset(subset: str | float | None) -> tuple[float, tuple[int, int] | None]:
    """5% (a random share), 0.05, or 2/20 (the second of twenty slices). Raises UsageError.

    Examples
    --------
    >>> parse_subset("5%"), parse_subset("2/20")
    ((0.05, None), (1.0, (2, 20)))
    """
    if subset is None:
        return 1.0, None
    text = str(subset)
    try:
        if "/" in text:
            part, of = (int(word) for word in text.split("/"))
            if 1 <= part <= of <= 1 << 20:
                return 1.0, (part, of)
        else:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if 0 < share <= 1:
                return share, None
    except ValueError:
        pass
    raise UsageError(f"cannot read the subset {subset!r}; write 5% or 2/20")
