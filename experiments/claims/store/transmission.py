"""Updating a client over a link of a given bandwidth, beside downloading the whole network: bytes and time.

Hu et al., ICPP 2020, section 5.3 and Figure 8, at their bandwidths. A real file server runs on this machine; everything
that it sends, headers included, is limited to the bandwidth of the link. Loopback has no latency, so the number of
requests is given as well. `--only` measures some pairs and keeps the records of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import load_file

import nearzip as nz
from experiments.claims.store import store
from experiments.lab import record, traces
from nearzip.store.pulling.pull import BANDWIDTHS

_PIECE = 16 << 10
#: Seconds that the sender may be late without the link being idle: a host's socket buffers as much.
_BUFFER = 0.25
_ROUNDS = 3
_PACKAGES = ("nearzip", "numpy", "zstandard")
Row = dict[str, Any]


class Link:
    """One link for all connections, so many megabits per second (None: no limit); counts bytes and requests."""

    def __init__(self) -> None:
        self.megabits: float | None = None
        self.n_bytes = self.n_requests = 0
        self._free_at = 0.0
        self._lock = threading.Lock()

    def send(self, n: int, follows: bool = False) -> None:
        """Wait until `n` bytes are across. `follows`: they stood ready while those before were on the link."""
        with self._lock:
            self.n_bytes += n
            if self.megabits is None:
                return
            # If the machine sleeps too long between two pieces of a response, the link catches up. Before the first
            # piece there was nothing to send, and nothing is saved up.
            ready = time.perf_counter() - (_BUFFER if follows else 0)
            self._free_at = max(self._free_at, ready) + n * 8e-6 / self.megabits
            across = self._free_at
        time.sleep(max(0.0, across - time.perf_counter()))


class _Shaped(io.RawIOBase):
    def __init__(self, stream: Any, link: Link):
        self._stream, self._link = stream, link
        self._has_begun = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            piece = view[at : at + _PIECE]
            self._link.send(len(piece), self._has_begun)
            self._has_begun = True
            self._stream.write(piece)
        return len(view)


@contextlib.contextmanager
def serving(folder: Path, link: Link) -> Iterator[str]:
    """Python's own server of files, behind the link."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments, directory=str(folder))

        def setup(self) -> None:
            super().setup()
            self.wfile = _Shaped(self.wfile, link)  # type: ignore[assignment]

        def log_request(self, *_: object) -> None:
            link.n_requests += 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _measured(link: Link, prepare: Callable[[], object], work: Callable[[], object]) -> Row:
    """Bytes and requests, and the median seconds at each bandwidth, and without a limit: what is not the link's."""
    seconds = {}
    for megabits in (None, *BANDWIDTHS):
        found = []
        for _ in range(_ROUNDS):
            link.megabits = None
            prepare()
            link.megabits, link.n_bytes, link.n_requests = megabits, 0, 0
            begin = time.perf_counter()
            work()
            found.append(time.perf_counter() - begin)
        seconds[str(megabits)] = statistics.median(found)
    link.megabits = None
    unlimited = seconds.pop("None")
    return {"bytes": link.n_bytes, "requests": link.n_requests, "unlimited_seconds": unlimited, "seconds": seconds}


def _same(file: Path, wanted: traces.Tensors) -> bool:
    found = load_file(file)
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def _update(folder: Path, link: Link, url: str, old: Path, new: Path, bound: str, evaluator: Any) -> Row:
    """Bring a client from the old version to the new one."""
    made = nz.Store(folder / "store", create=True, bound=bound, policy="forward")
    made.commit_file(old)
    made.commit_file(new)
    client, before = folder / "client.safetensors", folder / "before.safetensors"
    made.checkout_file(0, before, force=True)
    reports = []
    row = _measured(
        link,
        lambda: shutil.copyfile(before, client),
        lambda: reports.append(nz.pull(f"{url}/store", client)),
    )
    restored = made.checkout()
    if reports[-1].route != (1,) or not _same(client, restored):
        raise SystemExit(f"{bound}: the client did not get the version")
    row |= {"objects": reports[-1].n_moved, "described": reports[-1].n_described}
    if evaluator is not None and bound != "lossless":
        found = evaluator.compare(restored)
        row |= {"accuracy_change": found.accuracy_change, "kl": found.kl}
    shutil.rmtree(folder / "store")
    return row


def _download(folder: Path, link: Link, url: str, name: str, unpack: Callable[[bytes], bytes], wanted: bytes) -> Row:
    client = folder / "client.safetensors"

    def work() -> None:
        with urllib.request.urlopen(f"{url}/{name}") as response:  # noqa: S310 (our own server)
            client.write_bytes(unpack(response.read()))

    row = _measured(link, lambda: None, work)
    if client.read_bytes() != wanted:
        raise SystemExit(f"{name}: not what was sent")
    return row


def pairs(given: str | None, only: Collection[str] = ()) -> list[Row]:
    """Pairs of traces: an update under several bounds, and the whole network, packed with zstd or not."""
    where = traces.folder(given)
    if where is None:
        raise SystemExit("transmission: no traces; say where with --data")
    return [_one_pair(where, name, given) for name in traces.PAIRS if not only or name in only]


def _one_pair(where: Path, name: str, given: str | None) -> Row:
    older, newer, bounds = traces.PAIRS[name]
    old, new = where / f"{older}.safetensors", where / f"{newer}.safetensors"
    evaluators = store._evaluators(older.partition("/")[0], [load_file(new)], given)
    with tempfile.TemporaryDirectory() as scratch:
        folder, link, data = Path(scratch), Link(), new.read_bytes()
        (folder / "full").write_bytes(data)
        (folder / "full.zst").write_bytes(zstandard.ZstdCompressor(19).compress(data))
        with serving(folder, link) as url:
            row: Row = {
                "pair": name,
                "commit": record.commit(),
                "full": _download(folder, link, url, "full", lambda packed: packed, data),
                "zstd": _download(folder, link, url, "full.zst", zstandard.ZstdDecompressor().decompress, data),
                "updates": {
                    bound: _update(folder, link, url, old, new, bound, evaluators[0] if evaluators else None)
                    for bound in (f"abs:{max(bounds):g}", "rms:0.01", "lossless")
                },
            }
    print(
        name, {bound: found["bytes"] for bound, found in row["updates"].items()}, row["zstd"]["bytes"], file=sys.stderr
    )
    return row


def follow(given: str | None) -> list[Row]:
    """A client that takes every version of a chain, and one that comes back for the last: bytes alone."""
    rows = []
    for network, files in store.chains(given).items():
        pack = zstandard.ZstdCompressor(19).compress
        row: Row = {
            "network": network,
            "commit": record.commit(),
            "updates": len(files) - 1,
            "full": sum(file.stat().st_size for file in files[1:]),
            "zstd": sum(len(pack(file.read_bytes())) for file in files[1:]),
            "last_zstd": len(pack(files[-1].read_bytes())),
            "bounds": {bound: _followed(files, bound) for bound in ("rms:0.01", "lossless")},
        }
        print(row, file=sys.stderr)
        rows.append(row)
    return rows


def _followed(files: list[Path], bound: str) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        folder, link = Path(scratch), Link()
        made = nz.Store(folder / "store", create=True, bound=bound, policy="forward")
        for file in files:
            made.commit_file(file)
        with serving(folder, link) as url:

            def pulled(client: Path, number: int) -> int:
                before = link.n_bytes
                nz.pull(f"{url}/store", client, number)
                return link.n_bytes - before

            every, once = folder / "every.safetensors", folder / "once.safetensors"
            pulled(every, 0), pulled(once, 0)
            each = [pulled(every, number) for number in range(1, len(files))]
            row = {"each": sum(each), "at_once": pulled(once, len(files) - 1)}
        if not (_same(every, made.checkout()) and _same(once, made.checkout())):
            raise SystemExit(f"{bound}: a client did not get the last version")
        return row


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench transmission", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("NEARZIP_DATA"), help="folder with data sets and traces")
    parser.add_argument("--pairs", action="store_true", help="only the pairs, with times")
    parser.add_argument("--chains", action="store_true", help="only the chains, bytes alone")
    parser.add_argument("--only", nargs="+", default=[], choices=traces.PAIRS, metavar="PAIR", help="only these pairs")
    options = parser.parse_args(arguments)
    both = options.pairs == options.chains and not options.only
    before = record.load("transmission")
    found = {part: before.get(part) for part in ("pairs", "chains")}
    if both or options.pairs or options.only:
        known = {row["pair"]: row for row in found["pairs"] or []}
        known |= {row["pair"]: row for row in pairs(options.data, options.only)}
        found["pairs"] = [known[name] for name in traces.PAIRS if name in known]
        record.save("transmission", found, _PACKAGES)
    if both or options.chains:
        found["chains"] = follow(options.data)
        record.save("transmission", found, _PACKAGES)
