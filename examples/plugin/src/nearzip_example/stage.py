from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.stages import BYTES, Coded, Context, Stage


@dataclass(frozen=True)
class ByteDelta(Stage):
    """The difference of each byte to the one `distance` before it, modulo 256."""

    id = "example-byte-delta"
    takes, gives = BYTES, BYTES

    distance: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.distance <= 64:
            raise UsageError(f"a distance lies between 1 and 64, not {self.distance}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        source = np.frombuffer(value, np.uint8)
        out = source.copy()
        out[self.distance :] -= source[: -self.distance]
        return Coded(out.tobytes())

    def decode(self, coded: Coded, context: Context) -> bytes:
        differences = np.frombuffer(coded.data, np.uint8)
        rows = -(-differences.size // self.distance)
        padded = np.zeros(rows * self.distance, np.uint8)
        padded[: differences.size] = differences
        sums = padded.reshape(rows, self.distance).cumsum(axis=0, dtype=np.uint8)
        return sums.reshape(-1)[: differences.size].tobytes()
