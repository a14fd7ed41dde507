"""What every archive promises, checked for a `Pair` by every way in; an AssertionError names the pair that fails.

Each tensor is within its own bound even where tensors share bytes; archive and reader agree bit for bit; no archive is
larger than its tensors compressed without a base, losslessly, or as they are, but for a small constant.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nearzip import api
from nearzip.blocks import draft_segments
from nearzip.bounds import NoPromise, Statistics, Update, violations
from nearzip.checkpoints import write_checkpoint
from nearzip.coding import Codings
from nearzip.errors import UpdateLostWarning
from nearzip.inputs import open_input
from nearzip.matching import match_tensors, matched
from nearzip.recipes import recipe_type
from nearzip.stages import Context, Pipeline
from nearzip.store import Store
from nearzip.tensors import Array, Checkpoint, is_float
from nearzip.testing.pairs import Pair
from nearzip.ties import find_ties
from nearzip.updates import resolve_updates

__all__ = ["ENTRANCES", "check_pair"]

#: Header, footer and index of an archive without tensors, and what each tensor may cost beside its values.
_FIXED_BYTES, _TENSOR_BYTES = 700, 64
_SHARE = 1.01


def check_pair(pair: Pair, entrance: str = "compress") -> int:
    """Compress a pair by one of `ENTRANCES` and check it; returns the bytes. Raises AssertionError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UpdateLostWarning)
            restored, base, n_bytes = ENTRANCES[entrance](pair)
            _check_promises(dataclasses.replace(pair, base=base), restored)
            _check_size(dataclasses.replace(pair, base=base), n_bytes)
    except AssertionError as error:
        raise AssertionError(f"pair {pair.seed}, {entrance}, {pair.how}: {error}") from error
    return n_bytes


Compressed = tuple[Mapping[str, Array], dict[str, Array] | None, int]


def _by_compress(pair: Pair) -> Compressed:
    archive = api.compress(pair.tensors, pair.base, threads=1, **pair.how)
    restored = api.decompress(archive.to_bytes(), pair.base if archive.base_id else None)
    for name, array in archive.restored.items():
        assert restored[name].tobytes() == array.tobytes(), f"{name} is restored otherwise than said"
    return restored, pair.base, archive.nbytes


def _by_files(pair: Pair) -> Compressed:
    with tempfile.TemporaryDirectory() as folder:
        # Tensors in any order and complex128 are what only .pt holds.
        paths = {name: Path(folder) / f"{name}.pt" for name in ("new", "base", "out", "restored")}
        _write(paths["new"], pair.tensors)
        if pair.base is not None:
            _write(paths["base"], pair.base)
        base = None if pair.base is None else paths["base"]
        archive = Path(folder) / "a.nz"
        report = api.compress_file(paths["new"], archive, base, restored=paths["restored"], threads=1, **pair.how)
        api.decompress_file(archive, paths["out"], base)
        assert paths["out"].read_bytes() == paths["restored"].read_bytes(), "the file is restored otherwise than said"
        restored = dict(open_input(paths["out"]).arrays())
        assert report.n_bytes == archive.stat().st_size
        return restored, pair.base, report.n_bytes


def _write(path: Path, tensors: Mapping[str, Array]) -> None:
    source = Checkpoint.of(tensors)
    with write_checkpoint(path, source.specs) as writer:
        for name, array in source.arrays():
            writer.write(name, array)


def _by_store(pair: Pair) -> Compressed:
    """The base is what the store restores of the version before."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/s", create=True, threads=1, method=pair.method, options=pair.options or None)
        if pair.base:
            store.commit(pair.base)
        base = store.checkout("latest") if pair.base else None
        number = store.commit(pair.tensors, plan=_Planned(pair))
        restored = Store(f"{folder}/s").checkout(number)
        if store.info(number).base is None and recipe_type(pair.method).fallback == "restored":
            base = None  # a keyframe: what counts as pruned are the values, not their changes
        return restored, base, store.info(number).n_stored


@dataclasses.dataclass(frozen=True)
class _Planned:
    pair: Pair

    def codings_for(self, names: Any) -> Codings:
        return _codings(self.pair).codings_for(names)


#: Ways in: each gives what is restored, the base that was used, and the bytes that the tensors took.
ENTRANCES: dict[str, Callable[[Pair], Compressed]] = {"compress": _by_compress, "files": _by_files, "store": _by_store}


def _codings(pair: Pair) -> Codings:
    return Codings.of(pair.method, pair.bound, pair.options).for_tensors(pair.tensors)


def _resolved(pair: Pair) -> Codings:
    """With bounds relative to the update as they come out against the base."""
    return resolve_updates(Checkpoint.of(pair.tensors), _seen(pair, added=True), _codings(pair), 1).codings


def _seen(pair: Pair, added: bool = False) -> Checkpoint | None:
    """The base as the tensors see it: in their dtypes. `added`: with rows that it lacks from the tensors."""
    if pair.base is None:
        return None
    source, base = Checkpoint.of(pair.tensors), Checkpoint.of(pair.base)
    return matched(base, source.specs, match_tensors(source, base), source.read if added else None)


def _check_promises(pair: Pair, restored: Mapping[str, Array]) -> None:
    assert list(restored) == list(pair.tensors), "other names or another order"
    codings = _resolved(pair)
    pipelines = _pipelines(pair, codings)
    ties = find_ties(Checkpoint.of(pair.tensors), codings)
    for name, array in pair.tensors.items():
        assert (restored[name].dtype, restored[name].shape) == (array.dtype, array.shape), name
        flat = array.reshape(-1)
        bound = codings[name].promise
        tolerance = bound.tolerance(Statistics.of(flat) if is_float(flat.dtype) else Statistics())
        coded = ties.get(name, name)
        context = Context.of(flat, _base_of(pair, coded))
        target = pipelines[coded].target(flat, context) if is_float(flat.dtype) else flat
        outside = violations(target, restored[name].reshape(-1), tolerance)
        assert not outside.size, f"{name}: {outside.size} values are outside {bound}"


def _pipelines(pair: Pair, codings: Codings) -> dict[str, Pipeline]:
    source = Checkpoint.of(pair.tensors)
    base = _seen(pair) if codings.default.uses_base else None
    drafts = draft_segments(source, base, list(source.specs), codings, 1)
    return {spec.name: draft.pipeline for draft in drafts for spec in draft.tensors}


def _base_of(pair: Pair, name: str) -> Array | None:
    base = _seen(pair)
    spec = Checkpoint.of(pair.tensors).spec(name)
    return base.read(name) if base is not None and spec.same_kind(base.specs.get(name)) else None


def _check_size(pair: Pair, n_bytes: int) -> None:
    for what, most in _others(pair).items():
        allowed = _SHARE * most + _FIXED_BYTES + _TENSOR_BYTES * len(pair.tensors)
        assert n_bytes <= allowed, f"{n_bytes} bytes; {what}: {most}"


def _others(pair: Pair) -> dict[str, int]:
    """What else could be had, and its bytes."""
    codings, source = _resolved(pair), Checkpoint.of(pair.tensors)
    ties = find_ties(source, codings)
    sizes = {"as they are": sum(array.nbytes for name, array in pair.tensors.items() if name not in ties)}
    # Equal tensors of bounds that do not include each other are stored twice, exact ones once.
    if codings.default.recipe.fallback == "values" and ties == find_ties(source, Codings.of("nearzip")):
        sizes["lossless"] = api.compress(pair.tensors, threads=1).nbytes
        if pair.base is not None:
            sizes["lossless against the base"] = api.compress(pair.tensors, pair.base, threads=1).nbytes
    bounds = pair.bound.values() if isinstance(pair.bound, dict) else [pair.bound]
    needs_base = any(isinstance(bound, Update) for bound in bounds)
    if pair.base is not None and not needs_base and not isinstance(codings.default.promise, NoPromise):
        sizes["without a base"] = api.compress(pair.tensors, threads=1, **pair.how).nbytes
    return sizes
