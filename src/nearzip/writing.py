"""Writing an archive: every tensor encoded block by block, in threads, and put into a container in order."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from nearzip.archive import Progress, WriteReport
from nearzip.blocks import (
    Assembler,
    Block,
    Draft,
    block_context,
    block_values,
    draft_segments,
    in_own_memory,
    segment_blocks,
)
from nearzip.bounds import EXACT, NoPromise, Update
from nearzip.buffers import buffer_for
from nearzip.changes import Change, Changes, UpdateKept
from nearzip.choice import REPEATS, STORED
from nearzip.codec import encode_block
from nearzip.coding import Coding, Codings
from nearzip.coding_index import codings_json
from nearzip.container import BlockEntry, Index, Segment, Writer
from nearzip.digests import content_id, digest, part_digests
from nearzip.errors import UsageError
from nearzip.framing import Writable
from nearzip.limits import Limits
from nearzip.matching import Reference, n_new_bytes
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.stages import Context, Pipeline
from nearzip.tensors import Array, Checkpoint
from nearzip.ties import find_ties, names_by_target
from nearzip.updates import Resolved, resolve_updates
from nearzip.version import __version__

__all__ = ["check_writable", "write_archive"]

#: Takes each restored tensor as soon as it is complete.
Keep = Callable[[str, Array], None]


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
    check_writable(source)
    reference = _NO_REFERENCE
    if base is not None or before is not None:
        reference = Reference.of(source, base, before, rename)
        source = _with_steps(source, reference.before)
    if source.exact:
        codings = codings.with_exact(source.exact)
    if source.attached:
        codings = codings.with_bytes(_uncorrelated(source, reference.base))
    groups = codings.distinct(source.specs)
    if not any(coding.uses_base for coding in groups):
        reference = _NO_REFERENCE
    if any(isinstance(coding.promise, Update) for coding in groups):
        resolved = resolve_updates(source, reference.before, codings, threads)
    else:
        resolved = Resolved(codings)
    work = _Work(source, reference, resolved.codings, Writer(stream), keep)
    work.encode_all(threads, progress)
    return work.finish(codings, groups, resolved)


_NO_REFERENCE = Reference()


@dataclass(frozen=True)
class _Task:
    """One block to encode."""

    draft: Draft
    block: Block
    first: bool
    last: bool
    whole: Array | None = None  # memory for the values of all blocks of the draft

    @property
    def out(self) -> Array | None:
        """Memory for the block's own values."""
        return None if self.whole is None else self.whole[self.block.start : self.block.stop]


@dataclass(frozen=True)
class _Done:
    """What became of a task."""

    task: _Task
    payload: tuple[bytes, bytes]
    pipeline: Pipeline
    restored: Array
    n_patched: int
    n_false: int
    pieces: list[list[bytes]]  # digests of pieces of the restored tensors
    base_pieces: list[list[bytes]]
    changes: tuple[Change | None, ...] = ()  # of the parts, against the base


class _Work:
    """An archive on its way into a file. Blocks are encoded in any thread, and taken in order by one."""

    def __init__(
        self, source: Checkpoint, reference: Reference, codings: Codings, writer: Writer, keep: Keep | None
    ) -> None:
        self._source, self._reference, self._codings = source, reference, codings
        self._substitutes = _substituted(source, codings.substitutes)
        # One tensor has none to be equal to.
        self._ties = find_ties(source, codings, self._substitutes) if len(source.specs) > 1 else {}
        self._tied_to = names_by_target(self._ties) if self._ties else {}
        self._writer, self._keep = writer, keep
        self._n_bytes = source.n_bytes
        self._floor = _Floor.of(source, self._n_bytes, reference, self._ties)
        self._segments: list[Segment] = []
        self._contents: dict[str, bytes] = {}
        self._base_contents: dict[str, bytes] = {}
        self._choices: dict[str, str] = {}
        self._false_positives: dict[str, int] = {}
        self._changes = Changes()
        self._n_patched = 0
        # Of the segment whose blocks are being taken.
        self._entries: list[BlockEntry] = []
        self._assembler: Assembler | None = None

    def encode_all(self, threads: int, progress: Progress | None) -> None:
        names = [name for name in self._source.specs if name not in self._ties]
        drafts = draft_segments(self._source, self._reference.base, names, self._codings, threads)
        n_done = 0
        for done in ordered_map(self._encode, _tasks(drafts, self._keep is not None), threads):
            self._take(done)
            n_done += done.restored.nbytes
            if progress:
                progress(n_done, self._n_bytes)

    def finish(self, asked: Codings, groups: Mapping[Coding, list[str]], resolved: Resolved) -> WriteReport:
        """Write the index. `asked`: the codings before bounds were resolved, in `groups` with the tensors of each."""
        source, reference, contents, ties = self._source, self._reference, self._contents, self._ties
        contents.update({name: contents[target] for name, target in ties.items()})
        specs = tuple(source.specs.values())
        used = reference.matches if self._base_contents else {}
        method, bound = codings_json(asked, groups, resolved, specs)
        index = Index(
            tensors=specs,
            segments=tuple(self._segments),
            id=content_id((spec, contents[spec.name]) for spec in specs),
            base_id=reference.id_of(self._base_contents) if self._base_contents else None,
            aliases=ties,
            gone=() if reference.given is None else reference.gone(source),
            metadata=dict(source.metadata),
            tree=source.tree,
            method=method,
            bound=bound,
            writer=f"nearzip {__version__}",
            matches=used if reference.matches else None,
        )
        without_base = _without_base(source, reference.base, ties, self._codings)
        kept = None if reference.before is None else _update_kept(self._changes, ties, groups, asked.substitutes)
        n_bytes = self._writer.finish(index)
        self._floor.check(n_bytes, index)
        return WriteReport(
            index, n_bytes, self._n_patched, contents, without_base, used, self._false_positives, self._choices,
            update_kept=kept,
        )  # fmt: skip

    # inside

    def _encode(self, task: _Task) -> _Done:
        draft, block = task.draft, task.block
        reference, source = self._reference, self._source
        with contextlib.ExitStack() as stack:
            context = block_context(block, reference.base if draft.with_base else None, stack, task.out)
            substitute = None if self._substitutes is None else block_values(self._substitutes, block, stack)
            values = block_values(source, block, stack)
            is_known = draft.with_base and not any(spec.name in reference.grown for spec in block.tensors)
            had = None if is_known or reference.before is None else _before(values, block, reference.before)
            encoded = encode_block(
                values, context, draft.pipeline, draft.tolerances, substitute, draft.without, draft.fallback, had
            )
            return _Done(
                task,
                encoded.pieces,
                encoded.pipeline,
                in_own_memory(encoded.restored, values, context.base),
                encoded.n_patched,
                encoded.n_false,
                part_digests(encoded.restored, context.parts),
                [] if context.base is None else part_digests(context.base, context.parts),
                encoded.changes,
            )

    def _take(self, done: _Done) -> None:
        """Write the next block, and count it."""
        draft = done.task.draft
        if done.task.first:
            self._entries = []
            self._assembler = Assembler(draft.tensors, done.task.whole)
        payload, pipeline = done.payload, done.pipeline
        if self._floor.needed and not draft.with_base:
            n_written = self._writer.n_bytes + sum(map(len, payload))
            if self._floor.is_too_small(done.restored.nbytes, n_written):
                payload, pipeline = _stored(done)
        self._entries.append(self._writer.add_block(payload, pipeline))
        assert self._assembler is not None
        self._assembler.add(done.restored if self._keep else None, done.pieces, done.base_pieces)
        self._n_patched += done.n_patched
        if any(done.changes):
            self._changes.add((spec.name for spec in draft.tensors), done.changes, _step_of(draft.pipeline))
        if draft.pipeline.errs_on_zeros:
            self._false_positives[draft.tensors[0].name] = done.n_false
        if done.task.last:
            self._end_segment(draft)

    def _end_segment(self, draft: Draft) -> None:
        """Digests of a segment, once all of its blocks are written; its tensors go to `keep`."""
        assert self._assembler is not None
        own, theirs = self._assembler.digests()
        self._contents.update(zip((spec.name for spec in draft.tensors), own, strict=True))
        base_digest = None
        # A base that no block needs is not asked for.
        if theirs and any(entry.pipeline.needs_base for entry in self._entries):
            self._base_contents.update(zip((spec.name for spec in draft.tensors), theirs, strict=True))
            base_digest = digest(b"".join(theirs))
        self._choices.update(_choices(draft, self._entries, self._reference.base))
        self._segments.append(
            Segment(draft.tensors, draft.block_bytes, tuple(self._entries), digest(b"".join(own)), base_digest)
        )
        if self._keep:
            for name, array in self._assembler.tensors():
                for each in (name, *self._tied_to.get(name, ())):
                    self._keep(each, array)


def _tasks(drafts: Iterator[Draft], keeps: bool) -> Iterator[_Task]:
    for draft in drafts:
        blocks = segment_blocks(draft.tensors, draft.block_bytes)
        whole = None
        if keeps and len(blocks) > 1:
            whole = buffer_for(blocks[-1].stop, draft.tensors[0].numpy_dtype)
        for i, block in enumerate(blocks):
            yield _Task(draft, block, i == 0, i + 1 == len(blocks), whole)


def _choices(draft: Draft, entries: Sequence[BlockEntry], base: Checkpoint | None) -> dict[str, str]:
    """The choice for each tensor of a segment, if most of its blocks were coded otherwise than drafted."""
    as_drafted = draft.with_base or not draft.uses_base or base is None
    if as_drafted and all(entry.pipeline is draft.pipeline for entry in entries):
        return {}  # as most are; comparing pipelines takes longer
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
    def of(source: Checkpoint, n_bytes: int, reference: Reference, ties: Mapping[str, str]) -> _Floor:
        """`n_bytes`: those of all tensors."""
        if n_bytes <= Limits.FREE_BYTES:
            return _Floor(0, 0)
        new = n_new_bytes(source.specs.values(), reference.base, reference.matches)
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
        if needed <= Limits.FREE_BYTES:
            return
        if needed > Limits().allowed_output(n_bytes):
            warnings.warn(
                f"{needed} bytes of tensors take {n_bytes}: readers refuse that unless they are told to trust it "
                "(--max-output, Limits(output_bytes=...))",
                stacklevel=4,
            )


def _stored(done: _Done) -> tuple[tuple[bytes, bytes], Pipeline]:
    """A block's bytes without compression, and the pipeline that reads them."""
    context = Context(done.restored.dtype, done.task.block.parts, None, done.task.block.grids)
    encoded = encode_block(done.restored, context, STORED, [EXACT] * len(context.parts))
    return encoded.pieces, encoded.pipeline


def _step_of(pipeline: Pipeline) -> float:
    """The step of the quantization in a pipeline; 0 if there is none."""
    return next((float(stage.step) for stage in pipeline.stages if hasattr(stage, "step")), 0.0)


def _update_kept(
    changes: Changes, ties: Mapping[str, str], groups: Mapping[Coding, list[str]], substitutes: object
) -> UpdateKept:
    """What became of the update, and by which limit each of its tensors is checked."""
    tensors, residues = changes.found(ties)
    by_values: set[str] = set()
    tolerated: set[str] = set()
    for coding, names in groups.items():
        promise = coding.promise
        if substitutes is not None or isinstance(promise, NoPromise):
            by_values.update(name for name in names if name in tensors or name in residues)
        if isinstance(promise, Update) and promise.per == "network":
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


def check_writable(source: Checkpoint) -> None:
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


def _without_base(
    source: Checkpoint, base: Checkpoint | None, ties: Mapping[str, str], codings: Codings
) -> dict[str, str]:
    """Tensors that could not be coded against the base, and why."""
    if base is None or base.specs == source.specs:
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
