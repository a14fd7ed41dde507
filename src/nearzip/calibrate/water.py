"""Reverse water-filling: the rate-distortion function of independent Gaussian components.

Cover and Thomas, Elements of Information Theory, 2nd edition, section 10.3.3, theorem 10.3.3: at the distortion D every
component of variance v keeps the error min(t, v), the water level t being where these add up to D, and costs
max(0, log2(v / t) / 2) bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearzip.tensors import Array

__all__ = ["Water"]


@dataclass(frozen=True)
class Water:
    """Components by falling energy: what each adds to the distortion if nothing is said about it.

    Parameters
    ----------
    energies : array of float64, shape (n,)
        Falling, >= 0, without those that are zero.

    Examples
    --------
    >>> Water.of([4.0, 4.0, 1.0]).bits(3.0)
    2.0
    """

    energies: Array

    @staticmethod
    def of(energies: Array | list[float]) -> Water:
        found = np.asarray(energies, np.float64).reshape(-1)
        return Water(np.sort(found[found > 0])[::-1])

    @property
    def total(self) -> float:
        """The distortion at no rate."""
        return float(self.energies.sum())

    def level(self, distortion: float) -> float:
        """The water level t of a distortion > 0; the largest energy where the distortion is the total or more."""
        if not self.energies.size or distortion >= self.total:
            return float(self.energies[0]) if self.energies.size else 0.0
        n = np.arange(1, self.energies.size + 1)
        below = np.maximum(self.total - np.cumsum(self.energies), 0.0)
        # The first k are above the water where it is not lower than the next one.
        levels = (distortion - below) / n
        following = np.append(self.energies[1:], 0.0)
        return float(levels[int(np.argmax(levels >= following))])

    def bits(self, distortion: float) -> float:
        """The least rate of all components together."""
        level = self.level(distortion)
        above = self.energies[self.energies > level]
        return float(np.log2(above / level).sum() / 2)
