"""How an update is coded: which tensors are rounded, by which step or method, and which are sent exactly."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nearzip.blocks import draft_segments
from nearzip.bounds import EXACT, Bound, Rms, Statistics, parse_bound
from nearzip.codec import exact_pipeline
from nearzip.coding import Coding, Codings
from nearzip.digests import checkpoint_id
from nearzip.errors import UsageError
from nearzip.federated.message import BLOCK_BYTES, Group, pack, read_message, whole_block
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = [
    "EXACT_NAMES",
    "Copies",
    "UpdateCoding",
    "advanced",
    "applied",
    "as_model",
    "carrying",
    "check_same",
    "exact_delta",
    "model_id",
    "moved",
    "updates",
]

#: Tensors with fewer values than this take a finer step: they cost little, and a value of them matters more.
_SMALL = 1000
#: By this factor.
_FINER = 8.0
#: A message carries at least this share of the update's square sum: error feedback converges only if every message goes
#: some of the way (Stich and Karimireddy, 2020). Where all values are about as large, a step of four root mean squares
#: carries nothing, and residual and step would grow together for ever.
_LEAST = 0.02
#: The largest half of a step: steps are float32.
_MOST = float(np.finfo(np.float32).max) / 2
#: Values that this is estimated from.
_SAMPLE = 1 << 17
#: Buffers whose values must stay what they are: a running variance that is rounded below zero gives NaN.
EXACT_NAMES = ("*running_mean", "*running_var", "*num_batches_tracked")


@dataclass(frozen=True)
class UpdateCoding:
    """How the floats of an update are coded.

    Parameters
    ----------
    method : str
        "nearzip": one coarse step for the whole update, entropy-coded. "lossless": every bit of the trained model.
        Else a method of `nearzip.methods()`, applied to the update as a network of its own: topk, sbc, stc ...
    bound : str or Bound
        For "nearzip": `rms:c`, each value within c times the root mean square of the whole update and what was left
        before, with a finer step where this one would carry less than 2 % of its square sum; or `abs:e`.
    options : mapping
        The method's own.
    exact : sequence of str
        Names or patterns of tensors that are sent exactly, besides integers.
    """

    method: str = "nearzip"
    bound: Bound | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: Sequence[str] = EXACT_NAMES

    def __post_init__(self) -> None:
        if self.method == "lossless":
            if self.bound is not None or self.options:
                raise UsageError("method 'lossless' takes neither a bound nor options")
            return
        bound = parse_bound(self.bound) if isinstance(self.bound, str) else self.bound
        if self.method == "nearzip":
            bound = bound or Rms(2.0)
            if bound.key not in ("rms", "abs"):
                raise UsageError(f"a federated update takes a bound such as rms:2 or abs:1e-3, not {bound}")
            object.__setattr__(self, "bound", bound)
        else:
            object.__setattr__(self, "bound", Coding.of(self.method, bound, self.options).promise)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        bound = None if self.method == "lossless" else str(self.bound)
        return {"method": self.method, "bound": bound, "options": dict(self.options), "exact": list(self.exact)}

    @staticmethod
    def from_json(document: Any) -> UpdateCoding:
        """Raises UsageError, KeyError, TypeError for what `to_json` did not write."""
        bound = document["bound"]
        return UpdateCoding(
            document["method"], None if bound == "no promise" else bound, document["options"], tuple(document["exact"])
        )

    def numbered(self, n: int) -> UpdateCoding:
        """For a client's update number n: methods that draw random numbers (QSGD) draw others in every round."""
        if self.method in ("nearzip", "lossless"):
            return self
        options = Coding.of(self.method, options=self.options).recipe.options()
        if "seed" not in options:
            return self
        seed = (int(options["seed"]) << 24 | n % (1 << 24)) % (1 << 53)
        return replace(self, options={**self.options, "seed": seed})

    def is_exact(self, spec: TensorSpec) -> bool:
        """Whether a tensor is sent exactly."""
        if self.method == "lossless" or not spec.is_float:
            return True
        return any(fnmatch.fnmatchcase(spec.name, pattern) for pattern in self.exact)

    def groups(self, update: Checkpoint, base: Checkpoint) -> list[Group]:
        """Groups for all tensors of the base; `update` holds the float32 updates of those that are not exact."""
        found: list[Group] = []
        if update.specs:
            for codings, names in self._codings(update):
                for draft in draft_segments(update, None, names, codings, 1):
                    n_bytes = sum(spec.n_bytes for spec in draft.tensors)
                    size = BLOCK_BYTES if draft.block_bytes == BLOCK_BYTES else whole_block(n_bytes)
                    found.append(Group(draft.tensors, draft.pipeline, draft.tolerances, size, False))
        exact: dict[str, list[TensorSpec]] = {}
        for _, spec in sorted(base.specs.items()):
            if spec.name not in update.specs:
                exact.setdefault(spec.dtype, []).append(spec)
        for specs in exact.values():
            found += [_exact_group(group) for group in _runs(specs)]
        return found

    def _codings(self, update: Checkpoint) -> list[tuple[Codings, list[str]]]:
        if self.method != "nearzip":
            assert not isinstance(self.bound, str)
            return [(Codings.of(self.method, self.bound, self.options), list(update.specs))]
        large = [name for name, spec in update.specs.items() if spec.n_elements >= _SMALL] or list(update.specs)
        step = self._step(update, large)
        small = [name for name in update.specs if name not in set(large)]
        both = [(step, large), (step / _FINER, small)]
        return [(Codings.of("nearzip", options={"step": s, "finer": 0.0}), names) for s, names in both if names]

    def _step(self, update: Checkpoint, names: Sequence[str]) -> float:
        assert isinstance(self.bound, Bound)
        if self.bound.key == "abs":
            half = float(self.bound.value)  # type: ignore[attr-defined]
        else:
            total = sum((Statistics.of(update.read(name)) for name in names), Statistics())
            half = float(self.bound.value) * total.rms  # type: ignore[attr-defined]
            half = carrying(half, [update.read(name) for name in names])
        half = min(half, _MOST)
        # Rounded down to float32, so that the step takes four bytes and the bound still holds; never to zero.
        step = float(np.float32(2 * half * (1 - 2**-22)))
        return step if 0 < step < math.inf else float(np.float32(1e-30))


def carrying(half: float, arrays: Sequence[Array]) -> float:
    """Half a step, reduced in quarters of an octave until rounding by it carries `_LEAST` of the square sum."""
    stride = -(-sum(array.size for array in arrays) // _SAMPLE) or 1
    values = np.concatenate([array.reshape(-1)[::stride] for array in arrays]).astype(np.float64)
    whole = float(np.dot(values, values))
    if 0 < whole < math.inf:
        half = min(half, _MOST, float(np.abs(values).max()))  # a larger one carries nothing
    while 0 < whole < math.inf and half > 0:
        rest = values - 2 * half * np.rint(values / (2 * half))
        if whole - float(np.dot(rest, rest)) >= _LEAST * whole:
            break
        half *= 2**-0.25
    return half


def _exact_group(specs: Sequence[TensorSpec]) -> Group:
    return Group(tuple(specs), exact_pipeline(True), (EXACT,) * len(specs), BLOCK_BYTES, True)


def _runs(specs: Sequence[TensorSpec]) -> list[list[TensorSpec]]:
    """Small tensors of one dtype together, up to a block; a large one by itself."""
    found: list[list[TensorSpec]] = []
    size = math.inf
    for spec in specs:
        if size + spec.n_bytes > BLOCK_BYTES:
            found.append([])
            size = 0
        found[-1].append(spec)
        size += spec.n_bytes
    return found


def as_model(tensors: Mapping[str, Any]) -> Checkpoint:
    """A private copy of a model, in contiguous arrays."""
    source = Checkpoint.of(tensors)
    for name, spec in source.specs.items():
        if not spec.is_float and source.read(name).dtype.kind not in "fiubc":
            raise UsageError(f"tensor {name!r} has dtype {spec.dtype}, which has no arithmetic; it cannot be averaged")
    return Checkpoint.of({name: np.array(source.read(name)) for name in source.specs})


def model_id(model: Checkpoint) -> bytes:
    """Identity of names, dtypes, shapes and content, 16 bytes."""
    return bytes.fromhex(checkpoint_id(model))


def check_same(model: Checkpoint, held: Checkpoint) -> None:
    """Raise UsageError where names, shapes or dtypes differ from the model that is held."""
    for name in held.specs:
        if name not in model.specs:
            raise UsageError(f"tensor {name!r} is missing; the model held has it")
    for name, spec in model.specs.items():
        other = held.specs.get(name)
        if not spec.same_kind(other):
            is_there = "has no such tensor" if other is None else f"has it as {other.dtype} {list(other.shape)}"
            raise UsageError(f"tensor {name!r} is {spec.dtype} {list(spec.shape)}; the model held {is_there}")


def updates(trained: Checkpoint, held: Checkpoint, names: Sequence[str]) -> dict[str, Array]:
    """trained - held in float32, whatever the model's dtype: in bfloat16 small updates would vanish."""
    return {name: trained.read(name).astype(np.float32) - held.read(name).astype(np.float32) for name in names}


def applied(
    held: Checkpoint, decoded: Mapping[str, Array], exact: frozenset[str], consume: bool = False
) -> dict[str, Array]:
    """The model after an update: the same bits on both sides, because both add the same float32 values.

    The arrays are its own. `consume`: what was decoded is let go of, tensor by tensor.
    """
    found = {}
    for name, spec in held.specs.items():
        update = decoded.pop(name) if consume and isinstance(decoded, dict) else decoded[name]
        found[name] = np.array(update) if name in exact else moved(spec, held.read(name), update)
    return found


def moved(spec: TensorSpec, old: Array, update: Array) -> Array:
    """A tensor after its float32 update, in memory of its own."""
    wide = np.float64 if spec.dtype == "float64" else np.float32
    return np.asarray(old.astype(wide, copy=False) + update.astype(wide, copy=False)).astype(old.dtype, copy=False)


class Copies(MutableMapping[str, Array]):
    """Tensors of a model that the caller may write to: each is copied when it is asked for, and the copy is kept."""

    def __init__(self, model: Checkpoint) -> None:
        self._arrays = {name: model.read(name) for name in model.specs}
        self._own: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        if name not in self._own:
            self[name] = np.array(self._arrays[name])
        return self._arrays[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self._arrays[name] = value
        self._own.add(name)

    def __delitem__(self, name: str) -> None:
        del self._arrays[name]
        self._own.discard(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._arrays)

    def __or__(self, other: Mapping[str, Array]) -> dict[str, Array]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Array]) -> dict[str, Array]:
        return {**other, **self}

    def __ior__(self, other: Mapping[str, Array]) -> Copies:
        self.update(other)
        return self

    def copy(self) -> dict[str, Array]:
        """A dict of the tensors, as they are."""
        return dict(self)

    __copy__ = copy


def advanced(held: Checkpoint, held_id: bytes, data: bytes | memoryview) -> Checkpoint:
    """The model after a message from anybody. Raises what `read_message` and `Message.arrays` raise."""
    message = read_message(data, held, held_id)
    exact = frozenset(spec.name for group in message.groups if group.exact for spec in group.tensors)
    return Checkpoint.of(applied(held, message.arrays(), exact, consume=True))


def exact_delta(new: Checkpoint, old: Checkpoint, old_id: bytes) -> bytes:
    """The message that makes one model of another, bit for bit."""
    none = Checkpoint.of({})
    return pack(UpdateCoding("lossless").groups(none, old), none, new, old, old_id)[0]
