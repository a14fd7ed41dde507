"""Compress and restore in memory and from file to file: the codec over all tensors, into and out of a container."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Literal, TypeVar

import numpy as np

import nearzip._core as _core
from nearzip.attached import attached_names
from nearzip.bounds import EXACT, NoPromise, Update
from nearzip.buffers import buffer_for
from nearzip.changes import Change, Changes, UpdateKept
from nearzip.choice import REPEATS, STORED
from nearzip.codec import decode_block, decode_sparse_block, encode_block, time_block
from nearzip.coding import Codings
from nearzip.coding_index import codings_in, codings_json
from nearzip.container import (
    MATCHED_FORMAT,
    PLAIN_FORMAT,
    BlockEntry,
    Index,
    Segment,
    Source,
    Writable,
    Writer,
    read_index,
)
from nearzip.digests import content_id, digest, join_pieces, part_digests, tensor_digest
from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError, WrongBaseError
from nearzip.fileio import atomic_file, naming_memory
from nearzip.frameworks import check_framework, to_framework
from nearzip.layout import Block, Draft, block_context, block_values, draft_segments, segment_blocks
from nearzip.limits import Limits
from nearzip.matching import Matches, match_tensors, matched, matches_text, n_new_bytes
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.sparse_forms import sparse_in
from nearzip.stages import Context, DecodeTimes, Pipeline, SparseValues
from nearzip.tensors import Array, Checkpoint, TensorSpec
from nearzip.texts import html_table, human_bytes
from nearzip.ties import find_ties
from nearzip.updates import resolve_updates
from nearzip.version import __version__

__all__ = ["Archive", "Reader", "TensorReport", "write_archive"]

T = TypeVar("T")

#: Bytes of tensors below which threads cost more than they save.
_THREADS_FROM = 128 << 10
#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]
#: Takes each restored tensor as soon as it is complete.
Keep = Callable[[str, Array], None]


# ---- encoding --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    draft: Draft
    block: Block
    first: bool
    last: bool


@dataclass(frozen=True)
class _Done:
    task: _Task
    payload: tuple[bytes, bytes]
    pipeline: Any
    restored: Array
    n_patched: int
    n_false: int
    pieces: list[list[bytes]]  # digests of pieces of the restored tensors
    base_pieces: list[list[bytes]]
    changes: tuple[Change | None, ...] = ()  # of the parts, against the base


@dataclass
class WriteReport:
    """What happened while an archive was written."""

    index: Index
    n_bytes: int
    n_patched: int
    #: Digest of every tensor as a reader will get it.
    contents: dict[str, bytes]
    #: Tensors coded without a base although one was given, and why.
    alone: dict[str, str] = field(default_factory=dict)
    #: Tensors whose base has another name or dtype, and that tensor of the base.
    matches: Mapping[str, TensorSpec] = field(default_factory=dict)
    #: For tensors in a filter that errs on zeros: how many zeros a reader gets back as weights.
    false_positives: dict[str, int] = field(default_factory=dict)
    #: Tensors that took fewer bytes in another way than the method's own, and which: a key of `CHOICES`.
    choices: dict[str, str] = field(default_factory=dict)
    #: Calibrated archives: tensors that were rounded without calibration, and why.
    plain: dict[str, str] = field(default_factory=dict)
    #: Calibrated archives: of the answers on the batches held back, in nats per prediction.
    divergence: float | None = None
    #: How much of the change against the base is kept; None if no base was used.
    update_kept: UpdateKept | None = None

    @property
    def matches_text(self) -> str | None:
        """Which tensors of the base are used under another name or in another dtype; None if none is."""
        return matches_text(self.matches, {spec.name: spec for spec in self.index.tensors})

    @property
    def choices_text(self) -> str:
        """How many tensors were coded in which other way; empty if none was."""
        counts = Counter(self.choices.values())
        return ", ".join(f"{counts[choice]} {text}" for choice, text in CHOICES.items() if counts[choice])


#: Ways to code a tensor that take the place of the method's own where they are smaller.
CHOICES = {
    "no-base": "without the base",
    "exact": "exactly",
    "repeats": "exactly, by their repeats",
    "stored": "as they are",
}


def _choices(draft: Draft, entries: Sequence[BlockEntry], base: Checkpoint | None) -> dict[str, str]:
    """The choice for each tensor of a segment, if most of its blocks were coded otherwise than drafted."""
    taken = {draft.without: "no-base", REPEATS: "repeats", STORED: "stored", draft.pipeline: ""}
    choice = Counter(taken.get(entry.pipeline, "exact") for entry in entries).most_common(1)[0][0]
    far = not choice and not draft.with_base and draft.uses_base and base is not None
    if not choice and not far:
        return {}
    return {
        spec.name: choice or "no-base"
        for spec in draft.tensors
        if choice or (far and base is not None and spec.same_kind(base.specs.get(spec.name)))
    }


def _pieces(block: Block, values: Array) -> list[list[bytes]]:
    """Digests of the block's pieces, tensor by tensor."""
    return part_digests(values, block.parts)


def _tasks(drafts: Iterator[Draft]) -> Iterator[_Task]:
    for draft in drafts:
        blocks = segment_blocks(draft.tensors, draft.block_bytes)
        for i, block in enumerate(blocks):
            yield _Task(draft, block, i == 0, i + 1 == len(blocks))


class _Assembler:
    """Puts blocks of one segment together: its arrays and the digests of its tensors."""

    def __init__(self, tensors: tuple[TensorSpec, ...]):
        self._tensors = tensors
        self._values: Array | None = None
        self._n_values = 0
        self._pieces: list[list[bytes]] = []

    def add(self, values: Array | None, pieces: list[list[bytes]]) -> None:
        """The next block: its values, if they are wanted, and the digests of its pieces."""
        if values is not None:
            self._add_values(values)
        if not self._pieces:
            self._pieces = pieces
            return
        for mine, more in zip(self._pieces, pieces, strict=True):
            mine.extend(more)

    def digests(self) -> list[bytes]:
        return [join_pieces(pieces) for pieces in self._pieces]

    def _add_values(self, values: Array) -> None:
        n = sum(spec.n_elements for spec in self._tensors)
        if values.size == n:
            self._values = values
            return
        if self._values is None:
            self._values = buffer_for(n, values.dtype)
        self._values[self._n_values : self._n_values + values.size] = values
        self._n_values += values.size

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """The tensors, once all blocks are there."""
        assert self._values is not None
        at = 0
        for spec in self._tensors:
            yield spec.name, self._values[at : at + spec.n_elements].reshape(spec.shape)
            at += spec.n_elements


def write_archive(
    source: Checkpoint,
    base: Checkpoint | None,
    codings: Codings,
    stream: Writable,
    keep: Keep | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    before: Checkpoint | None = None,
    rename: Mapping[str, str] | None = None,
) -> WriteReport:
    """Encode every tensor of `source` as `codings` say, block by block, and write the archive to `stream`.

    `keep` gets each tensor as a reader will. `before`: what the reader has so far where that is no base, for a
    keyframe: changes, and bounds relative to them, count from it. `rename`: as for `compress`. Where the base, or what
    comes before, carries the steps that it was quantized by, they are used again as far as bounds allow. Memory: a few
    blocks, and what `keep` holds.
    """
    threads = number_of_threads(threads)
    _check_writable(source)
    given = base
    matches = {} if base is None else match_tensors(source, base, rename)
    base = None if base is None else matched(base, source.specs, matches)
    # Added rows count as unchanged, like tensors that are new.
    grown = {name for name, origin in matches.items() if origin.shape[:1] < source.specs[name].shape[:1]}
    if before is not None and before is not given:
        before = matched(before, source.specs, match_tensors(source, before), source.read)
    elif given is not None:
        before = matched(given, source.specs, matches, source.read) if grown else base
    source = _with_steps(source, before)
    codings = codings.with_exact(source.exact).with_bytes(_uncorrelated(source, base))
    if not any(coding.uses_base for coding in codings.distinct(source.specs)):
        base = before = given = None
        matches = {}
    asked, resolved = codings, resolve_updates(source, before, codings, threads)
    codings = resolved.codings
    substitutes = _substituted(source, codings.substitutes)
    ties = find_ties(source, codings, substitutes)
    tied_to = _inverted(ties)
    names = [name for name in source.specs if name not in ties]
    writer = Writer(stream, MATCHED_FORMAT if matches else PLAIN_FORMAT)
    segments: list[Segment] = []
    contents: dict[str, bytes] = {}
    base_contents: dict[str, bytes] = {}
    entries: list[BlockEntry] = []
    false_positives: dict[str, int] = {}
    changes = Changes()
    choices: dict[str, str] = {}
    n_patched = done_bytes = 0
    drafts = draft_segments(source, base, names, codings, threads)
    floor = _Floor.of(source, base, ties, matches)
    assembler = base_assembler = _Assembler(())

    def encode(task: _Task) -> _Done:
        return _encode(task, source, base, substitutes, before, grown)

    for done in ordered_map(encode, _tasks(drafts), threads):
        draft = done.task.draft
        if done.task.first:
            entries = []
            assembler, base_assembler = _Assembler(draft.tensors), _Assembler(draft.tensors)
        payload, pipeline = done.payload, done.pipeline
        if not draft.with_base and floor.is_too_small(done.restored.nbytes, writer.n_bytes + sum(map(len, payload))):
            payload, pipeline = _stored(done)
        entries.append(writer.add_block(payload, pipeline))
        assembler.add(done.restored if keep else None, done.pieces)
        n_patched += done.n_patched
        changes.add((spec.name for spec in draft.tensors), done.changes, _step_of(draft.pipeline))
        if draft.pipeline.errs_on_zeros:
            false_positives[draft.tensors[0].name] = done.n_false
        done_bytes += done.restored.nbytes
        if draft.with_base:
            base_assembler.add(None, done.base_pieces)
        if done.task.last:
            own = assembler.digests()
            contents.update(zip((spec.name for spec in draft.tensors), own, strict=True))
            base_digest = None
            # A base that no block needs is not asked for.
            if draft.with_base and any(entry.pipeline.needs_base for entry in entries):
                theirs = base_assembler.digests()
                base_contents.update(zip((spec.name for spec in draft.tensors), theirs, strict=True))
                base_digest = digest(b"".join(theirs))
            choices.update(_choices(draft, entries, base))
            segments.append(
                Segment(draft.tensors, draft.block_bytes, tuple(entries), digest(b"".join(own)), base_digest)
            )
            if keep:
                for name, array in assembler.tensors():
                    for each in (name, *tied_to.get(name, ())):
                        keep(each, array)
        if progress:
            progress(done_bytes, source.n_bytes)

    contents.update({name: contents[target] for name, target in ties.items()})
    specs = tuple(source.specs.values())
    used = matches if base_contents else {}
    method, bound = codings_json(asked, resolved, specs)
    index = Index(
        tensors=specs,
        segments=tuple(segments),
        id=content_id((spec, contents[spec.name]) for spec in specs),
        base_id=_base_id(given, base_contents, matches),
        aliases=ties,
        gone=_gone(source, given, matches),
        metadata=dict(source.metadata),
        tree=source.tree,
        method=method,
        bound=bound,
        writer=f"nearzip {__version__}",
        matches=used if matches else None,
    )
    alone = _coded_alone(source, base, ties, codings)
    kept = None if before is None else _update_kept(changes, ties, asked)
    n_bytes = writer.finish(index)
    floor.check(n_bytes, index)
    return WriteReport(index, n_bytes, n_patched, contents, alone, used, false_positives, choices, update_kept=kept)


@dataclass
class _Floor:
    """How small an archive may become: readers refuse a large result from few bytes unless their base has its shape.

    Blocks of a network that is constant (zeros, fresh moments) shrink to nothing. So that readers with the default
    limits accept what was written, one block in a thousand is stored as it is. Nothing else of the archive changes.
    """

    needed: int
    counted: int

    #: Readers take `Limits.EXPANSION`; the rest is a margin for what is coded after the last large block.
    EXPANSION: ClassVar[int] = 1000
    #: Larger blocks are not stored: those of methods that never cut a tensor.
    MAX_BLOCK: ClassVar[int] = 64 << 20

    @staticmethod
    def of(source: Checkpoint, base: Checkpoint | None, ties: Mapping[str, str], matches: Matches) -> _Floor:
        if source.n_bytes <= Limits.FREE_BYTES:
            return _Floor(0, 0)
        new = n_new_bytes(source.specs.values(), base, matches)
        return _Floor(sum(new.values()), sum(n_bytes for name, n_bytes in new.items() if name in ties))

    def is_too_small(self, n_decoded: int, n_written: int) -> bool:
        """Whether a block of so many bytes must be stored as it is; `n_written` is the archive's length with it."""
        self.counted += n_decoded
        if self.needed <= Limits.FREE_BYTES or n_decoded > self.MAX_BLOCK:
            return False
        return self.counted > Limits.FREE_BYTES // 2 and n_written * self.EXPANSION < self.counted

    def check(self, n_bytes: int, index: Index) -> None:
        """Warn of what readers will refuse all the same."""
        needed = self.needed if index.base_id is not None else index.n_bytes
        if needed > Limits().allowed_output(n_bytes):
            warnings.warn(
                f"{needed} bytes of tensors take {n_bytes}: readers refuse that unless they are told to trust it "
                "(--max-output, Limits(output_bytes=...))",
                stacklevel=3,
            )


def _stored(done: _Done) -> tuple[tuple[bytes, bytes], Pipeline]:
    """A block's bytes without compression, and the pipeline that reads them."""
    context = Context(done.restored.dtype, done.task.block.parts, None, done.task.block.grids)
    encoded = encode_block(done.restored, context, STORED, [EXACT] * len(context.parts))
    return encoded.pieces, encoded.pipeline


def _step_of(pipeline: Pipeline) -> float:
    """The step of the quantization in a pipeline; 0 if there is none."""
    return next((float(stage.step) for stage in pipeline.stages if hasattr(stage, "step")), 0.0)


def _update_kept(changes: Changes, ties: Mapping[str, str], codings: Codings) -> UpdateKept:
    """What became of the update, and which of its tensors are judged how."""
    tensors, residues = changes.found(ties)
    by_values: set[str] = set()
    tolerated: set[str] = set()
    for coding, names in codings.distinct([*tensors, *residues]).items():
        if codings.substitutes is not None or isinstance(coding.promise, NoPromise):
            by_values.update(names)
        if isinstance(coding.promise, Update) and coding.promise.per == "network":
            tolerated.update(names)
    return UpdateKept(tensors, by_values, tolerated, residues)


def _with_steps(source: Checkpoint, before: Checkpoint | None) -> Checkpoint:
    """`source` with the steps of what the reader has, where it has none of its own."""
    return source if source.steps or before is None else replace(source, steps=before.steps)


def _substituted(source: Checkpoint, substitutes: Mapping[str, Array] | None) -> Checkpoint | None:
    """What the pipelines are given; None if that is the source itself."""
    if substitutes is None:
        return None
    return replace(source, read=lambda name: substitutes[name] if name in substitutes else source.read(name))


def _check_writable(source: Checkpoint) -> None:
    """Refuse to write what readers refuse by default."""
    limits = Limits()
    if len(source.specs) > limits.tensors:
        raise UsageError(f"{len(source.specs)} tensors; an archive holds up to {limits.tensors}")
    for name, spec in source.specs.items():
        if len(name.encode()) > limits.name_bytes:
            raise UsageError(f"tensor {name[:40]!r}..: a name has up to {limits.name_bytes} bytes")
        if len(spec.shape) > limits.rank:
            raise UsageError(f"tensor {name!r} has {len(spec.shape)} dimensions; an archive holds up to {limits.rank}")


def _uncorrelated(source: Checkpoint, base: Checkpoint | None) -> list[str]:
    """Attached bytes that the base does not hold nearly as they are: differences would hide their repeats."""
    return [
        name
        for name in source.specs
        if name in source.attached and (base is None or not _nearly_equal(source, base, name))
    ]


def _nearly_equal(source: Checkpoint, base: Checkpoint, name: str) -> bool:
    spec = source.specs[name]
    if not spec.same_kind(base.specs.get(name)) or not spec.n_elements:
        return False
    return float(np.mean(source.read(name) == base.read(name))) > 0.99


def _inverted(aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """Aliases by the tensor that they stand for."""
    found: dict[str, list[str]] = {}
    for alias, target in aliases.items():
        found.setdefault(target, []).append(alias)
    return found


def _coded_alone(
    source: Checkpoint, base: Checkpoint | None, ties: Mapping[str, str], codings: Codings
) -> dict[str, str]:
    if base is None:
        return {}
    reasons = {}
    for name, spec in source.specs.items():
        other = base.specs.get(name)
        if name in ties or spec.same_kind(other) or not codings[name].uses_base:
            continue
        if other is None:
            reasons[name] = "new"
        else:
            reasons[name] = f"was {other.dtype} {list(other.shape)}, is {spec.dtype} {list(spec.shape)}"
    return reasons


def _gone(source: Checkpoint, base: Checkpoint | None, matches: Matches) -> tuple[str, ...]:
    """Tensors of the base that the version no longer has, under whatever name."""
    origins = {origin.name for origin in matches.values()}
    return tuple(name for name in base.specs if name not in source.specs and name not in origins) if base else ()


def _base_id(base: Checkpoint | None, contents: Mapping[str, bytes], matches: Matches) -> str | None:
    """Identity of the whole base as it was given, None if no tensor of it was used.

    `contents`: digests of tensors as the version sees them.
    """
    if base is None or not contents:
        return None
    known = {name: content for name, content in contents.items() if name not in matches}
    return content_id((spec, known.get(name) or tensor_digest(base.read(name))) for name, spec in base.specs.items())


def _encode(
    task: _Task,
    source: Checkpoint,
    base: Checkpoint | None,
    substitutes: Checkpoint | None,
    before: Checkpoint | None,
    grown: Set[str],
) -> _Done:
    draft, block = task.draft, task.block
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(block_context(block, base if draft.with_base else None))
        substitute = None if substitutes is None else stack.enter_context(block_values(substitutes, block))
        values = stack.enter_context(block_values(source, block))
        is_known = draft.with_base and not any(spec.name in grown for spec in block.tensors)
        had = None if is_known or before is None else _before(values, block, before)
        encoded = encode_block(
            values, context, draft.pipeline, draft.tolerances, substitute, draft.without, draft.fallback, had
        )
        return _Done(
            task,
            encoded.pieces,
            encoded.pipeline,
            _apart(encoded.restored, values, context.base),
            encoded.n_patched,
            encoded.n_false,
            _pieces(block, encoded.restored),
            _pieces(block, context.require_base()) if draft.with_base else [],
            encoded.changes,
        )


def _before(values: Array, block: Block, before: Checkpoint) -> Array | None:
    """What the reader has had so far of a block that is coded without it; None if that is nothing."""
    known = [spec.same_kind(before.specs.get(spec.name)) for spec in block.tensors]
    if not any(known) or not block.tensors[0].is_float:
        return None
    if len(known) == 1:
        piece: Array = before.read(block.tensors[0].name).reshape(-1)[block.start : block.stop]
        return piece
    had: Array = values.copy()  # tensors that are new count as unchanged
    at = 0
    for spec, is_known in zip(block.tensors, known, strict=True):
        if is_known:
            had[at : at + spec.n_elements] = before.read(spec.name).reshape(-1)
        at += spec.n_elements
    return had


def _apart(restored: Array, *others: Array | None) -> Array:
    """`restored`, in memory of its own: the others' is used for the next block."""
    return restored.copy() if any(o is not None and np.may_share_memory(restored, o) for o in others) else restored


# ---- decoding --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorReport:
    """What `inspect` shows of a tensor: how it is coded and, for one that stands alone, its bytes in the file."""

    spec: TensorSpec
    stages: tuple[str, ...]
    with_base: bool
    n_bytes: float
    alias_of: str | None = None


class Reader(Mapping[str, Any]):
    """An open archive: a mapping of names to arrays (or PyTorch tensors) that are decoded when asked for.

    Decoding one tensor reads its segment and nothing else: its own blocks, or the block that it shares with other
    small tensors. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        source: Source,
        base: Checkpoint | None = None,
        limits: Limits | None = None,
        threads: int | None = None,
        framework: str = "np",
        list_attached: bool = True,
    ):
        self._source = source
        self._framework = check_framework(framework)
        self._others: contextlib.ExitStack = contextlib.ExitStack()
        self._threads = number_of_threads(threads)
        limits = limits or Limits()
        with naming_memory(source.name):
            self.index = read_index(source, limits)
        self._given, self._base = base, self._seen(base)
        self._check_size(limits)
        self._segment_of = {spec.name: s for s in self.index.segments for spec in s.tensors}
        self._cached: tuple[Segment, dict[str, Array]] | None = None
        #: Tensors that are bytes of files: found by name, but not listed.
        self._hidden = frozenset[str]() if list_attached else attached_names(self.index.tree)

    # mapping

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self.index.tensors if spec.name not in self._hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._segment_of or name in self.index.aliases

    def __getitem__(self, name: str) -> Any:
        """Decode one tensor. Raises NotFoundError (a KeyError), CorruptError, WrongBaseError."""
        return to_framework(self.array(name), self._framework)

    def array(self, name: str) -> Array:
        """One tensor as a NumPy array, whatever the framework. Raises as indexing does."""
        target = self.index.aliases.get(name, name)
        segment = self._segment_of.get(target)
        if segment is None:
            raise NotFoundError(f"{self._source.name}: no tensor {name!r}")
        if self._cached is None or self._cached[0] is not segment:
            arrays = dict(next(self._decode([segment])))
            # Only groups are worth keeping: their next tensor is likely to be asked for.
            self._cached = (segment, arrays) if len(segment.tensors) > 1 else None
        else:
            arrays = self._cached[1]
        array = arrays[target]
        return array.copy() if len(segment.tensors) > 1 else array

    def sparse(self, name: str, format: Literal["csr", "torch"] = "csr") -> Any:
        """One tensor in sparse form.

        Methods that keep a tensor sparse (deepsz, deepsz-nearzip, deep-compression, weightless) are decoded without a
        dense array; of the others the zeros are left out.

        Parameters
        ----------
        name : str
        format : "csr" or "torch"
            A `scipy.sparse.csr_array` of shape (first dimension, product of the others), or a coalesced
            `torch.sparse_coo` tensor of the tensor's own shape.

        Raises
        ------
        NotFoundError, CorruptError, WrongBaseError
            As for dense reading. The checksums of the stored blocks are checked, not that of the dense tensor.
        UsageError
            A tensor without dimensions, or of a dtype that the format does not have.
        MissingExtraError
            SciPy or PyTorch is not installed.
        """
        target = self.index.aliases.get(name, name)
        segment = self._segment_of.get(target)
        if segment is None:
            raise NotFoundError(f"{self._source.name}: no tensor {name!r}")
        spec = next(spec for spec in segment.tensors if spec.name == target)
        return sparse_in(format, spec, self._sparse_values(segment, spec))

    def decode_times(self) -> dict[str, DecodeTimes]:
        """How long the parts of decoding took for each tensor that is stored sparse: gaps, values, matrix.

        Raises CorruptError.
        """
        found = {}
        for segment in self.index.segments:
            blocks = segment_blocks(segment.tensors, segment.block_bytes)
            for number, (entry, block) in enumerate(zip(segment.blocks, blocks, strict=True)):
                times = self._decoded((segment, entry, block, number), time_block)
                if times is not None:
                    found[segment.tensors[0].name] = times
        return found

    def _sparse_values(self, segment: Segment, spec: TensorSpec) -> SparseValues:
        """Places within the tensor, and values, of one that has a segment of its own or shares one."""
        if len(segment.tensors) > 1:
            flat = self.array(spec.name).reshape(-1)
            places = np.flatnonzero(flat != 0)
            return SparseValues(places, flat[places])
        blocks = segment_blocks(segment.tensors, segment.block_bytes)
        parts = [
            self._decoded((segment, entry, block, number), decode_sparse_block)
            for number, (entry, block) in enumerate(zip(segment.blocks, blocks, strict=True))
        ]
        all_places = [part.places + block.start for part, block in zip(parts, blocks, strict=True)]
        return SparseValues(np.concatenate(all_places), np.concatenate([part.values for part in parts]))

    @property
    def nbytes(self) -> int:
        """Length of the archive."""
        return self._source.size

    @property
    def codings(self) -> Codings:
        """How the tensors were coded, as the file says. Raises CorruptError if it says what cannot be."""
        return codings_in(self.index)

    def metadata(self) -> dict[str, str]:
        """The plain strings that came with the tensors."""
        return dict(self.index.metadata)

    # whole archive

    def against(self, base: Checkpoint | None, limits: Limits | None = None) -> Reader:
        """The same archive, its index read once, for another base. Raises LimitError. Closing one closes both."""
        other = copy.copy(self)
        other._given, other._base, other._cached = base, self._seen(base), None
        other._check_size(limits or Limits())
        return other

    def stream(
        self,
        names: set[str] | None = None,
        progress: Progress | None = None,
        contents: dict[str, bytes] | None = None,
    ) -> Iterator[tuple[str, Array]]:
        """Decode all tensors (or those of `names`), a segment at a time and in the file's order, aliases behind.

        `contents` is given the digest of each tensor before the tensor is.
        """
        digests: dict[str, bytes] = {}
        wanted = [s for s in self.index.segments if names is None or any(spec.name in names for spec in s.tensors)]
        total = sum(spec.n_bytes for s in wanted for spec in s.tensors)
        done = 0
        tied_to = _inverted(self.index.aliases)
        for pairs in self._decode(wanted, digests):
            for name, array in pairs:
                for each in (name, *tied_to.get(name, ())):
                    if names is None or each in names:
                        if contents is not None:
                            contents[each] = digests[name]
                        yield each, array
                done += array.nbytes
            if progress:
                progress(done, total)

    def damage(self) -> dict[str, CorruptError | WrongBaseError]:
        """Decode everything and keep nothing: the error of each tensor that cannot be read."""
        found: dict[str, CorruptError | WrongBaseError] = {}
        for segment in self.index.segments:
            error = self._error_of(segment)
            if error is not None:
                found.update({spec.name: error for spec in segment.tensors})
        found.update({alias: found[name] for alias, name in self.index.aliases.items() if name in found})
        return found

    def tensor_reports(self) -> list[TensorReport]:
        """How each tensor is coded and what it costs; a shared block's bytes are split by number of values."""
        reports = {}
        for segment in self.index.segments:
            n_bytes = sum(block.length for block in segment.blocks)
            n = sum(spec.n_elements for spec in segment.tensors)
            for spec in segment.tensors:
                stages = tuple(stage.label for stage in segment.blocks[0].pipeline.stages)
                share = n_bytes * spec.n_elements / n if n else 0.0
                reports[spec.name] = TensorReport(spec, stages, segment.base_digest is not None, share)
        specs = {spec.name: spec for spec in self.index.tensors}
        for alias, target in self.index.aliases.items():
            reports[alias] = TensorReport(specs[alias], (), False, 0.0, target)
        return [reports[spec.name] for spec in self.index.tensors]

    def close(self) -> None:
        """Close the archive, and the base if it was opened for it."""
        self._source.close()
        self._others.close()

    def closing(self, close: Callable[[], None]) -> Reader:
        """Itself; `close` is called when it is closed."""
        self._others.callback(close)
        return self

    def _repr_html_(self) -> str:
        index = self.index
        return html_table(self._source.name, _described(index, self.nbytes))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # inside

    def _check_size(self, limits: Limits) -> None:
        alone = sum(n_new_bytes(self.index.tensors, self._base, self.index.matches or {}).values())
        needed = alone if limits.output_bytes is None else self.index.n_bytes
        if needed > limits.allowed_output(self._source.size):
            raise LimitError(
                f"{self._source.name}: declares {needed} bytes of tensors; the limit is "
                f"{limits.allowed_output(self._source.size)}. If you trust the file, raise it "
                "(--max-output, Limits(output_bytes=...))"
            )

    def _seen(self, base: Checkpoint | None) -> Checkpoint | None:
        """The base as this version sees it: under its own names, in its dtypes. Without what the base does not have."""
        matches = self.index.matches
        if base is None or not matches:
            return base
        there = {name: origin for name, origin in matches.items() if base.specs.get(origin.name) == origin}
        specs = {spec.name: spec for spec in self.index.tensors}
        return matched(base, specs, there)

    def _base_for(self, segment: Segment) -> Checkpoint:
        name = self._source.name
        if self._base is None or self._given is None:
            raise WrongBaseError(f"{name}: was made against a base with id {self.index.base_id}; give that base")
        for spec in segment.tensors:
            wanted = (self.index.matches or {}).get(spec.name, spec)
            other = self._given.specs.get(wanted.name)
            if not wanted.same_kind(other):
                is_there = "has no such tensor" if other is None else f"has it as {other.dtype} {list(other.shape)}"
                raise WrongBaseError(
                    f"{name}: tensor {wanted.name!r} ({wanted.dtype} {list(wanted.shape)}) needs a base with id "
                    f"{self.index.base_id}; the one given {is_there}"
                )
        return self._base

    def _check_base(self, segment: Segment, base: Checkpoint) -> None:
        assembler = _Assembler(segment.tensors)
        for block in segment_blocks(segment.tensors, segment.block_bytes):
            with block_values(base, block) as values:
                assembler.add(None, _pieces(block, values))
        self._compare_base(segment, assembler)

    def _compare_base(self, segment: Segment, assembler: _Assembler) -> None:
        if digest(b"".join(assembler.digests())) != segment.base_digest:
            raise WrongBaseError(
                f"{self._source.name}: {segment.label}: the base given is not the one that this archive was made "
                f"against (id {self.index.base_id})"
            )

    def _error_of(self, segment: Segment) -> CorruptError | WrongBaseError | None:
        try:
            next(self._decode([segment]))
        except (CorruptError, WrongBaseError) as error:
            return error
        return None

    def _decoded(
        self, work: tuple[Segment, BlockEntry, Block, int], decode: Callable[[bytes | memoryview, Context, Pipeline], T]
    ) -> T:
        """What `decode` makes of a block's bytes."""
        segment, entry, block, number = work
        payload = self._source.read(entry.offset, entry.length)
        where = f"{self._source.name}: {segment.label}, block {number}"
        if digest(payload) != entry.digest:
            raise CorruptError(f"{where}: the file is damaged here (checksum differs)")
        base = self._base_for(segment) if segment.base_digest is not None else None
        with naming_memory(where), block_context(block, base) as context:
            try:
                return decode(payload, context, entry.pipeline)
            except CorruptError as error:
                if base is not None:
                    # The bytes are those written: another base may have misled a stage.
                    self._check_base(segment, base)
                raise CorruptError(f"{where}: {error}") from None

    def _decode_block(self, work: tuple[Segment, BlockEntry, Block, int]) -> tuple[Array, Any, Any]:
        block = work[2]

        def decode(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> tuple[Array, Any, Any]:
            values = _apart(decode_block(payload, context, pipeline), context.base)
            base_pieces = [] if context.base is None else _pieces(block, context.base)
            return values, _pieces(block, values), base_pieces

        return self._decoded(work, decode)

    def _decode(
        self, segments: list[Segment], digests: dict[str, bytes] | None = None
    ) -> Iterator[list[tuple[str, Array]]]:
        """The tensors of each segment, checked; their digests go into `digests`."""
        work = (
            (segment, entry, block, number)
            for segment in segments
            for number, (entry, block) in enumerate(
                zip(segment.blocks, segment_blocks(segment.tensors, segment.block_bytes), strict=True)
            )
        )
        n_bytes = sum(spec.n_bytes for segment in segments for spec in segment.tensors)
        results = ordered_map(self._decode_block, work, 1 if n_bytes < _THREADS_FROM else self._threads)
        for segment in segments:
            with naming_memory(f"{self._source.name}: {segment.label}"):
                assembler = self._assemble(segment, results)
                own = assembler.digests()
            if digest(b"".join(own)) != segment.digest:
                raise CorruptError(f"{self._source.name}: {segment.label}: decoded values differ from what was written")
            if digests is not None:
                digests.update(zip((spec.name for spec in segment.tensors), own, strict=True))
            yield list(assembler.tensors())

    def _assemble(self, segment: Segment, results: Iterator[tuple[Array, Any, Any]]) -> _Assembler:
        """The tensors of a segment from its decoded blocks. Raises WrongBaseError."""
        assembler, base_assembler = _Assembler(segment.tensors), _Assembler(segment.tensors)
        for _ in segment.blocks:
            values, pieces, base_pieces = next(results)
            assembler.add(values, pieces)
            if segment.base_digest is not None:
                base_assembler.add(None, base_pieces)
        if segment.base_digest is not None:
            self._compare_base(segment, base_assembler)
        return assembler


class Archive:
    """A compressed network in memory, as `compress` makes it.

    Attributes
    ----------
    nbytes : int
        Length of the archive.
    ratio : float
        Bytes of the original tensors over bytes of the archive.
    restored : dict of arrays
        What a reader will get, bit for bit: the base for the next version.
    id, base_id : str, str or None
        Identities of `restored` and of the base it needs.
    update_kept : UpdateKept or None
        How much of the change against the base is kept: `.share` of the network's, `.tensors` one by one, `.lost` the
        names of tensors that lost theirs. None if no base was used.
    """

    def __init__(self, data: bytes | Array, restored: dict[str, Array], report: WriteReport):
        self._data: bytes | Array = data
        self.restored = restored
        self.report = report

    @property
    def nbytes(self) -> int:
        return len(self._data)

    @property
    def data(self) -> memoryview:
        """As `to_bytes`, without a copy."""
        return memoryview(self._data) if isinstance(self._data, bytes) else self._data.data

    @property
    def ratio(self) -> float:
        return self.report.index.n_bytes / len(self._data)

    @property
    def id(self) -> str:
        return self.report.index.id

    @property
    def update_kept(self) -> UpdateKept | None:
        return self.report.update_kept

    @property
    def base_id(self) -> str | None:
        return self.report.index.base_id

    def to_bytes(self) -> bytes:
        """The archive, as `decompress` reads it. The first call makes a copy."""
        if not isinstance(self._data, bytes):
            self._data = _core.to_bytes(self._data)
        return self._data

    def save(self, path: str | os.PathLike[str] | BinaryIO, force: bool = True) -> None:
        """Write the archive to a file, whole or not at all, or to a binary stream.

        A file that exists is replaced; with `force=False` it is a UsageError.
        """
        if not isinstance(path, (str, os.PathLike)):
            path.write(self.data)
            return
        with atomic_file(path, force=force) as stream:
            stream.write(self.data)

    def __repr__(self) -> str:
        n = len(self.report.index.tensors)
        choices = self.report.choices_text
        smaller = f"; smaller than asked: {choices}" if choices else ""
        return f"<nearzip.Archive of {n} tensors, {self.nbytes} bytes, ratio {self.ratio:.2f}{smaller}>"

    def _repr_html_(self) -> str:
        kept = None if self.update_kept is None else f"{self.update_kept.share:.2%} of the change"
        return html_table("nearzip.Archive", [*_described(self.report.index, self.nbytes), ("update kept", kept)])


def _described(index: Index, n_bytes: int) -> list[tuple[str, object]]:
    """What notebooks show of an archive."""
    return [
        ("tensors", f"{len(index.tensors):,}, {human_bytes(index.n_bytes)}"),
        ("size", f"{human_bytes(n_bytes)}: {index.n_bytes / max(1, n_bytes):.2f}x smaller"),
        ("method", index.method.get("name")),
        ("bound", ":".join(str(index.bound[key]) for key in ("kind", "value") if key in index.bound)),
        ("base", index.base_id or "none needed"),
    ]
