"""Reading an archive: `Reader` decodes tensors when they are asked for, and checks what it decoded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np

from nearzip.archive import Progress, TensorReport, described
from nearzip.attached import attached_names
from nearzip.blocks import Assembler, Block, block_context, block_values, in_own_memory, segment_blocks
from nearzip.codec import decode_block, decode_sparse_block, time_block
from nearzip.coding import Codings
from nearzip.coding_index import codings_in
from nearzip.container import BlockEntry, Segment, read_index
from nearzip.digests import digest, part_digests
from nearzip.display import html_table
from nearzip.errors import CorruptError, LimitError, NotFoundError, WrongBaseError
from nearzip.fileio import memory_error
from nearzip.frameworks import check_framework, to_framework
from nearzip.framing import Source
from nearzip.limits import Limits
from nearzip.matching import matched, n_new_bytes
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.sparse import sparse_in
from nearzip.stages import Context, DecodeTimes, Pipeline, SparseValues
from nearzip.tensors import Array, Checkpoint, TensorSpec
from nearzip.ties import names_by_target

__all__ = ["Reader"]

T = TypeVar("T")

#: Bytes of tensors below which threads cost more than they save.
_THREADS_FROM = 128 << 10


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
        try:
            self.index = read_index(source, limits)
        except MemoryError as error:
            raise memory_error(source.name, error) from None
        self._n_bytes = self.index.n_bytes
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
        """Indices within the tensor, and values, of one that has a segment of its own or shares one."""
        if len(segment.tensors) > 1:
            flat = self.array(spec.name).reshape(-1)
            indices = np.flatnonzero(flat != 0)
            return SparseValues(indices, flat[indices])
        blocks = segment_blocks(segment.tensors, segment.block_bytes)
        parts = [
            self._decoded((segment, entry, block, number), decode_sparse_block)
            for number, (entry, block) in enumerate(zip(segment.blocks, blocks, strict=True))
        ]
        all_indices = [part.indices + block.start for part, block in zip(parts, blocks, strict=True)]
        return SparseValues(np.concatenate(all_indices), np.concatenate([part.values for part in parts]))

    @property
    def nbytes(self) -> int:
        """Length of the archive."""
        return self._source.size

    @property
    def codings(self) -> Codings:
        """The codings that the file records. Raises CorruptError if they are invalid."""
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
        tied_to = names_by_target(self.index.aliases) if self.index.aliases else {}
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
        """Decode all tensors without keeping them. Returns the errors of those that cannot be read, by name."""
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
        return html_table(self._source.name, described(index, self.nbytes))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # inside

    def _check_size(self, limits: Limits) -> None:
        needed = self._n_bytes
        if limits.output_bytes is None:
            if needed <= limits.FREE_BYTES:
                return
            needed = sum(n_new_bytes(self.index.tensors, self._base, self.index.matches or {}).values())
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
        assembler = Assembler(segment.tensors)
        for block in segment_blocks(segment.tensors, segment.block_bytes):
            with contextlib.ExitStack() as stack:
                assembler.add(None, part_digests(block_values(base, block, stack), block.parts), [])
        self._compare_base(segment, assembler.digests()[0])

    def _compare_base(self, segment: Segment, digests: list[bytes]) -> None:
        """Raises WrongBaseError if the tensors of the base have other digests than those of the writer's."""
        if digest(b"".join(digests)) != segment.base_digest:
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
        if digest(payload)[: len(entry.digest)] != entry.digest:
            raise CorruptError(f"{self._where(segment, number)}: the file is damaged here (checksum differs)")
        base = self._base_for(segment) if segment.base_digest is not None else None
        try:
            with contextlib.ExitStack() as stack:
                return decode(payload, block_context(block, base, stack), entry.pipeline)
        except MemoryError as error:
            raise memory_error(self._where(segment, number), error) from None
        except CorruptError as error:
            if base is not None:
                # The bytes are those written: another base may have misled a stage.
                self._check_base(segment, base)
            raise CorruptError(f"{self._where(segment, number)}: {error}") from None

    def _where(self, segment: Segment, number: int) -> str:
        """A block's name in messages."""
        return f"{self._source.name}: {segment.label}, block {number}"

    def _decode_block(self, work: tuple[Segment, BlockEntry, Block, int]) -> tuple[Array, Any, Any]:
        def decode(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> tuple[Array, Any, Any]:
            values = in_own_memory(decode_block(payload, context, pipeline), context.base)
            base_pieces = [] if context.base is None else part_digests(context.base, context.parts)
            return values, part_digests(values, context.parts), base_pieces

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
            try:
                assembler, own = self._assemble(segment, results)
            except MemoryError as error:
                raise memory_error(f"{self._source.name}: {segment.label}", error) from None
            if digest(b"".join(own)) != segment.digest:
                raise CorruptError(f"{self._source.name}: {segment.label}: decoded values differ from what was written")
            if digests is not None:
                digests.update(zip((spec.name for spec in segment.tensors), own, strict=True))
            yield assembler.tensors()

    def _assemble(self, segment: Segment, results: Iterator[tuple[Array, Any, Any]]) -> tuple[Assembler, list[bytes]]:
        """The tensors of a segment from its decoded blocks, and their digests. Raises WrongBaseError."""
        assembler = Assembler(segment.tensors)
        for _ in segment.blocks:
            assembler.add(*next(results))
        own, theirs = assembler.digests()
        if segment.base_digest is not None:
            self._compare_base(segment, theirs)
        return assembler, own
