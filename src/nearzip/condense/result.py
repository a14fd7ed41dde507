"""What comes out: a smaller network as a module and as an archive, with the evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nearzip.api import decompress
from nearzip.condense.trial import Trial
from nearzip.display import human_bytes
from nearzip.fileio import Output, Path_, atomic_file
from nearzip.tensors import Array

__all__ = ["Archived", "Condensed"]


class Archived:
    """The archive: an ordinary one, for `nearzip.decompress` and `nearzip.open`."""

    def __init__(self, data: bytes):
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    @property
    def restored(self) -> dict[str, Array]:
        """The restored arrays. Every call decodes them again."""
        return decompress(self._data)

    def to_bytes(self) -> bytes:
        return self._data

    def save(self, path: Output, force: bool = True) -> None:
        """Write it whole or not at all, or to a stream. Raises UsageError for a file that exists, unless `force`."""
        with atomic_file(path, force=force) as stream:
            stream.write(self._data)


@dataclass(frozen=True)
class Condensed:
    """A condensed network.

    Parameters
    ----------
    module : torch.nn.Module
        What the archive restores, in evaluation mode.
    archive : Archived
        `save(path)`, `to_bytes()`, `nbytes`, `restored`.
    keep : float
        The share that was kept.
    objective : dict
        "name"; "before" and "after"; "gain", from 1 on for what got better; "details".
    original_bytes : int
        Of the original's tensors, uncompressed.
    losses, max_loss, metrics, original : dict of str to float
        By metric, on what the archive restores, counted from the original network. Empty without `evaluate`.
    chosen : Trial
    trials : tuple of Trial
        In the order of the search.
    stages : tuple of str
        What each was for.
    notes : tuple of str
        What could not be thinned, and why.
    described : dict
        Scheme, recovery, strategy, seed and versions, as texts and numbers.
    """

    module: nn.Module
    archive: Archived
    keep: float
    objective: Mapping[str, Any]
    original_bytes: int
    losses: Mapping[str, float]
    max_loss: Mapping[str, float]
    metrics: Mapping[str, float]
    original: Mapping[str, float]
    chosen: Trial
    trials: tuple[Trial, ...]
    stages: Sequence[str]
    notes: tuple[str, ...]
    described: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """How many times smaller the archive is than the original's tensors."""
        return self.original_bytes / self.archive.nbytes

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON, without the networks."""
        return {
            "keep": self.keep,
            "n_bytes": self.archive.nbytes,
            "original_bytes": self.original_bytes,
            "objective": dict(self.objective),
            "losses": dict(self.losses),
            "max_loss": dict(self.max_loss),
            "metrics": dict(self.metrics),
            "original": dict(self.original),
            "trials": [
                {"stage": stage, **trial.to_json()} for stage, trial in zip(self.stages, self.trials, strict=True)
            ],
            "notes": list(self.notes),
            **self.described,
        }

    def save_evidence(self, path: Path_, force: bool = True) -> None:
        """Write `to_json` to a file, whole or not at all."""
        with atomic_file(path, force=force) as stream:
            stream.write(json.dumps(self.to_json(), indent=1, allow_nan=False).encode() + b"\n")

    def __str__(self) -> str:
        gain = f", {self.objective['gain']:.3g}x {self.objective['name']}" if self.objective["name"] != "bytes" else ""
        lost = ", ".join(f"{name} {loss:.4g} of {self.max_loss[name]:.4g}" for name, loss in self.losses.items()
                         if name in self.max_loss)  # fmt: skip
        lost = f"lost {lost}" if lost else "accuracy not measured"
        return (
            f"kept {100 * self.keep:.3g} %: {human_bytes(self.original_bytes)} -> {human_bytes(self.archive.nbytes)}, "
            f"{self.ratio:.4g}x smaller{gain}; {lost}; {len(self.trials)} trainings"
        )
