"""The residual of a client: what its updates have not delivered yet, raw, compressed, or dropped.

A method with a base (QD-Compressor's difference) codes the residual against the previous one as decoded. "nearzip"
rounds at random, up or down with the chances that keep the mean: rounding to the nearest would erase in each round what
is still too small to be sent, and the residual exists to let it grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nearzip.api import compress, compress_quietly
from nearzip.archive import Archive
from nearzip.bounds import Absolute, Bound, Rms, Statistics, parse_bound
from nearzip.errors import CorruptError, UsageError
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.recipes import recipe_type
from nearzip.tensors import Array

__all__ = ["Residual", "is_residual"]

#: What marks an archive as a residual, so that no network is taken for one.
_KEY, _MARK = "federated", "nearzip federated residual 1"

#: Values that one thread rounds at random at a time.
_PIECE = 1 << 19
#: By method: the bound where none is given.
_BOUNDS = {"nearzip": "rms:0.25"}


class Residual:
    """float32 arrays between two rounds.

    Parameters
    ----------
    method : str or None
        "exact": as they are. None: nothing is kept. Else a method of `nearzip.methods()`.
    bound, options
        For the method.
    """

    def __init__(
        self, method: str | None, bound: str | Bound | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        if method not in (None, "exact"):
            recipe_type(method).from_options(dict(options or {}))
        elif bound is not None or options:
            raise UsageError(f"residual {method!r} takes neither a bound nor options")
        self.method = method
        default = _BOUNDS.get(method or "")
        self._bound = (
            parse_bound(bound) if isinstance(bound, str) else bound or (parse_bound(default) if default else None)
        )
        self._options = dict(options or {})
        self._values: dict[str, Array] = {}
        self._error: Exception | None = None
        self._n_stored = 0
        #: Bytes that the residual takes between rounds.
        self.n_bytes = 0

    def load(self, names: Iterable[str]) -> dict[str, Array]:
        """The residuals of these tensors; those without one are left out."""
        return {name: self._values[name] for name in names if name in self._values}

    def store(self, values: Mapping[str, Array]) -> None:
        """Keep these in place of the old ones. Errors are raised by the next `check`: this runs beside the upload."""
        try:
            self._store(dict(values))
        except Exception as error:
            self._error = error

    def check(self) -> None:
        """Raise what went wrong in `store`."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _store(self, values: dict[str, Array]) -> None:
        if self.method is None:
            self._values, self.n_bytes = {}, 0
        elif self.method == "exact" or not values:
            self._values, self.n_bytes = values, sum(value.nbytes for value in values.values())
        else:
            base = {name: self._values.get(name, np.zeros_like(value)) for name, value in values.items()}
            bound: Bound | None = self._bound
            if self.method == "nearzip" and isinstance(bound, (Rms, Absolute)):
                bound = Absolute(_half_step(bound, values))
                values = self._dithered(values, 2 * bound.value)
            archive = compress_quietly(values, base, self.method, bound, options=self._options)
            self._values, self.n_bytes = archive.restored, archive.nbytes

    def _dithered(self, values: Mapping[str, Array], step: float) -> dict[str, Array]:
        """Values moved by up to half a step, evenly at random: the nearest level is then right on average."""
        self._n_stored += 1
        seed, width = self._n_stored, np.float32(step)
        found = {name: np.array(value, np.float32) for name, value in values.items()}

        def move(piece: tuple[int, Array]) -> None:
            at, flat = piece
            noise = _uniform(seed, at, flat.size)
            noise -= np.float32(0.5)
            noise *= width
            flat += noise

        for _ in ordered_map(move, _pieces(found.values()), number_of_threads(None)):
            pass
        return found

    def archive(self, values: Mapping[str, Array]) -> Archive:
        """An archive of these values that needs no base, marked as a residual."""
        if self.method in (None, "exact") or not values:
            return _marked(values, "nearzip", None, {})
        bound: Bound | None = self._bound
        if self.method == "nearzip" and isinstance(bound, (Rms, Absolute)):
            bound = Absolute(_half_step(bound, values))
            values = self._dithered(values, 2 * bound.value)
        return _marked(values, str(self.method), bound, self._options)

    def parts(self) -> dict[str, Array]:
        """Arrays for the state of a client."""
        return dict(self._values)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the values."""
        return {
            "method": self.method, "bound": None if self._bound is None else str(self._bound), "options": self._options,
            "n_stored": self._n_stored,
        }  # fmt: skip

    @staticmethod
    def from_json(document: Any, values: Mapping[str, Array]) -> Residual:
        """Raises CorruptError for what `to_json` did not write."""
        try:
            found = Residual(document["method"], document["bound"], document["options"])
            found._n_stored = int(document["n_stored"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise CorruptError(f"client state: residual: {error}") from None
        for name, value in values.items():
            if value.dtype != np.float32 or not np.isfinite(value).all():
                raise CorruptError(f"client state: the residual of {name!r} is not finite float32")
        found._values = {name: np.array(value) for name, value in values.items()}
        return found


def _marked(values: Mapping[str, Array], method: str, bound: Bound | None, options: Mapping[str, Any]) -> Archive:
    return compress(values, None, method, bound, options=options, metadata={_KEY: _MARK})


def is_residual(metadata: Mapping[str, str]) -> bool:
    """Whether an archive's metadata say that `Residual.archive` made it."""
    return metadata.get(_KEY) == _MARK


def _pieces(arrays: Iterable[Array]) -> Iterator[tuple[int, Array]]:
    """Views of all values in pieces, each with the number of values before it."""
    before = 0
    for array in arrays:
        flat = array.reshape(-1)
        for at in range(0, flat.size, _PIECE):
            yield before + at, flat[at : at + _PIECE]
        before += flat.size


def _uniform(seed: int, start: int, n: int) -> Array:
    """Numbers start to start + n of a stream of float32 in [0, 1), whatever the pieces that it is drawn in."""
    generator = np.random.PCG64(seed)
    generator.advance(start // 2)  # one draw of 64 bits is two numbers
    rng = np.random.Generator(generator)
    return rng.random(n + start % 2, np.float32)[start % 2 :]


def _half_step(bound: Rms | Absolute, values: Mapping[str, Array]) -> float:
    """One step for all tensors, from the root mean square of all residuals."""
    if isinstance(bound, Absolute):
        return bound.value
    total = sum((Statistics.of(value) for value in values.values()), Statistics())
    return max(bound.value * total.rms, 1e-30)
