"""From manifests to arrays: a version is decoded against its base, which is decoded against its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from nearzip.digests import content_id
from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, TruncatedError, WrongBaseError
from nearzip.framing import Source
from nearzip.limits import Limits
from nearzip.reading import Reader
from nearzip.store.backends.backend import Backend
from nearzip.store.manifest import Manifest, Part
from nearzip.store.versions import Versions
from nearzip.tensors import Array, Checkpoint, TensorSpec, keeping_last

__all__ = ["Progress", "open_part", "restore", "stream"]

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def _naming(url: str, number: int) -> Iterator[None]:
    """Say which version it was, and what to do."""
    try:
        yield
    except (CorruptError, LimitError, WrongBaseError, NotFoundError) as error:
        kind = CorruptError if isinstance(error, (WrongBaseError, NotFoundError, TruncatedError)) else type(error)
        advice = "" if kind is LimitError else f"; run 'nearzip store verify {url}'"
        raise kind(f"{url}: version {number} cannot be restored: {error}{advice}") from None
    except _LacksTensorError as error:
        raise NotFoundError(f"{url}: version {number} has no tensor {error.args[0]!r}") from None


def open_part(
    backend: Backend, part: Part, base: Checkpoint | None, limits: Limits | None, threads: int | None
) -> Reader:
    """The archive that holds a part of a version. Raises NotFoundError, CorruptError, .."""
    return _open(backend.source(f"objects/{part.object}", part.n_bytes), part, base, limits, threads)


def _open(source: Source, part: Part, base: Checkpoint | None, limits: Limits | None, threads: int | None) -> Reader:
    try:
        if source.size != part.n_bytes:
            raise TruncatedError(f"object {part.object} has {source.size} bytes instead of {part.n_bytes}")
        reader = Reader(source, base, limits, threads)
        lacking = [name for name in part.names or () if name not in reader]
        if lacking:
            raise CorruptError(f"object {part.object} has no tensor {lacking[0]!r}")
        return reader
    except BaseException:
        source.close()
        raise


class _Piece:
    """A part, opened to look at its index, and which of its tensors are wanted.

    Attributes
    ----------
    part, reader, names
        As they were given.
    segments : list of Segment
        Those that hold the tensors that are wanted.
    base_names : set of str
        Tensors of the base that decoding needs, as the base calls them.
    """

    def __init__(self, part: Part, reader: Reader, names: frozenset[str]) -> None:
        self.part, self.reader, self.names = part, reader, names
        index = reader.index
        targets = {index.aliases.get(name, name) for name in names}
        self.segments = [s for s in index.segments if any(spec.name in targets for spec in s.tensors)]
        matches = index.matches or {}
        with_base = {spec.name for s in self.segments if s.base_digest is not None for spec in s.tensors}
        self.base_names = {matches[name].name if name in matches else name for name in with_base}

    @property
    def specs(self) -> list[TensorSpec]:
        """Of the tensors that are wanted, in the archive's order."""
        return [spec for spec in self.reader.index.tensors if spec.name in self.names]


def _pieces(manifest: Manifest, wanted: frozenset[str] | None, open_: Callable[[Part], Reader]) -> list[_Piece]:
    pieces = []
    for part in manifest.parts:
        if wanted is not None and part.names is not None and not wanted.intersection(part.names):
            continue  # another process's shard, most likely
        reader = open_(part)
        names = frozenset(reader if part.names is None else part.names)
        names = names if wanted is None else names & wanted
        if names:
            pieces.append(_Piece(part, reader, names))
    seen = [name for piece in pieces for name in piece.names]
    if len(seen) != len(set(seen)):
        raise CorruptError("two of its parts hold a tensor of one name")
    if wanted is not None and not wanted <= set(seen):
        raise _LacksTensorError(min(wanted - set(seen)))
    return pieces


class _LacksTensorError(Exception):
    """The caller's mistake if it is the version that was asked for, else damage."""


def restore(
    backend: Backend,
    versions: Versions,
    number: int,
    names: Iterable[str] | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    known: Mapping[int, Mapping[str, Array]] | None = None,
) -> dict[str, Array]:
    """The arrays of a version, in memory, bit for bit what was committed.

    Memory: the arrays, and those of one base at a time. `known`: arrays of versions that need no decoding.

    Raises
    ------
    NotFoundError
        No such version or tensor.
    CorruptError, LimitError
        It is damaged, or larger than the limits.
    """
    chain = versions.chain(number)
    with contextlib.ExitStack() as stack, _naming(backend.url, number):
        sources: dict[str, Source] = {}

        def open_(part: Part) -> Reader:
            # Once for its index and once to decode it, but fetched once.
            if part.object not in sources:
                sources[part.object] = backend.source(f"objects/{part.object}", part.n_bytes)
                stack.callback(sources[part.object].close)
            return _open(sources[part.object], part, None, _generous(limits), threads)

        wanted: dict[int, frozenset[str] | None] = {number: None if names is None else frozenset(names)}
        work: list[tuple[Manifest, list[_Piece]]] = []
        for manifest in reversed(chain):
            needed = wanted.get(manifest.number, frozenset())
            if needed == frozenset() and manifest.number != number:
                continue
            if known and manifest.number in known:
                continue
            try:
                pieces = _pieces(manifest, needed, open_)
            except _LacksTensorError as error:
                if manifest.number == number:
                    raise
                raise CorruptError(f"version {manifest.number} lacks tensor {error.args[0]!r}") from None
            for piece in pieces:
                if piece.part.base is not None:
                    # Never None: only the version that was asked for is wanted whole.
                    before = wanted.get(piece.part.base) or frozenset()
                    wanted[piece.part.base] = before | piece.base_names
            work.append((manifest, pieces))
        work.reverse()
        held: dict[int, Mapping[str, Array]] = dict(known or {})
        total = sum(spec.n_bytes for _, pieces in work for p in pieces for s in p.segments for spec in s.tensors)
        done = 0
        contents: dict[str, bytes] = {}
        for i, (manifest, pieces) in enumerate(work):
            arrays: dict[str, Array] = {}
            contents = {}
            for piece in pieces:
                for name, array in _decoded(piece, held, limits, contents):
                    arrays[name] = array
                    done += array.nbytes
                    if progress:
                        progress(min(done, total), total)
            held[manifest.number] = arrays
            still = {p.part.base for _, later in work[i + 1 :] for p in later} | {number}
            held = {n: a for n, a in held.items() if n in still}
        specs = {spec.name: spec for _, pieces in work[-1:] for p in pieces for spec in p.specs}
        found = _in_order(chain[-1], specs, held[number])
        if names is None:
            _check_whole(chain[-1], specs, found, contents)
        return found


def _generous(limits: Limits | None) -> Limits:
    """For reading only an index."""
    return Limits(output_bytes=1 << 62, index_bytes=None if limits is None else limits.index_bytes)


def _decoded(
    piece: _Piece, held: Mapping[int, Mapping[str, Array]], limits: Limits | None, contents: dict[str, bytes]
) -> Iterator[tuple[str, Array]]:
    # A part may name a base and need none of its tensors.
    base = Checkpoint.of(held[piece.part.base]) if piece.part.base is not None and piece.base_names else None
    yield from piece.reader.against(base, limits).stream(set(piece.names), None, contents)


def _in_order(manifest: Manifest, names: Iterable[str], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """In the manifest's order or that of `names`, and separate in memory."""
    found: dict[str, Array] = {}
    seen: set[int] = set()
    for name in manifest.order or names:
        if name in arrays:
            array = arrays[name]
            found[name] = array.copy() if id(array) in seen else array
            seen.add(id(array))
    return found


def _check_whole(
    manifest: Manifest, specs: Mapping[str, TensorSpec], found: Mapping[str, Array], contents: Mapping[str, bytes]
) -> None:
    """Raise CorruptError for what is not the content that the manifest names.

    `contents`: digests that were taken of the tensors when they were decoded.
    """
    if set(found) != set(contents) or content_id((specs[name], contents[name]) for name in found) != manifest.id:
        raise CorruptError("what was decoded is not what was committed (digests differ)")


# ---- one tensor at a time --------------------------------------------------------------------------------------


@contextlib.contextmanager
def stream(
    backend: Backend, versions: Versions, number: int, limits: Limits | None = None, threads: int | None = None
) -> Iterator[Checkpoint]:
    """A version whose tensors are decoded when they are read. Memory: one tensor for each link of the chain."""
    chain = versions.chain(number)
    with contextlib.ExitStack() as stack:
        opened: dict[int, Checkpoint] = {}
        for manifest in chain:
            with _naming(backend.url, number):
                opened[manifest.number] = _lazy(backend, manifest, opened, limits, threads, stack)
        yield opened[number]


def _lazy(
    backend: Backend,
    manifest: Manifest,
    opened: Mapping[int, Checkpoint],
    limits: Limits | None,
    threads: int | None,
    stack: contextlib.ExitStack,
) -> Checkpoint:
    def open_(part: Part) -> Reader:
        base = None if part.base is None else opened[part.base]
        return stack.enter_context(open_part(backend, part, base, limits, threads))

    pieces = _pieces(manifest, None, open_)
    readers = {name: piece.reader for piece in pieces for name in piece.names}
    specs: dict[str, TensorSpec] = {
        spec.name: spec for piece in pieces for spec in piece.reader.index.tensors if spec.name in piece.names
    }
    if manifest.order is not None:
        if set(manifest.order) != set(specs):
            raise CorruptError("its order names other tensors than its parts")
        specs = {name: specs[name] for name in manifest.order}

    def read(name: str) -> Array:
        try:
            return readers[name].array(name)
        except Error as error:
            raise type(error)(f"version {manifest.number}: {error}") from None

    return Checkpoint(specs, keeping_last(read), dict(manifest.metadata), manifest.tree)
