"""Pulls that are cut off, killed, or served by a hostile host: the file is the old version or the new one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import time

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors, fileio
from nearzip.checkpoints import open_checkpoint
from nearzip.store.backends import http
from nearzip.store.documents import seal
from store.helpers import history
from store.hosts import serving

pull_module = sys.modules["nearzip.store.pulling.pull"]
#: No second attempt: every cut ends the pull.
AT_ONCE = {"retries": 0}


@pytest.fixture
def store(tmp_path):
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3), policy="forward")
    for version in history(4, 4000):
        store.commit(version)
    return store


@pytest.fixture
def host(store, tmp_path):
    with serving(tmp_path / "store") as host:
        yield host


def arrays(path):
    return {name: array.tobytes() for name, array in open_checkpoint(path).arrays()}


def contents(store, number):
    return {name: array.tobytes() for name, array in store.checkout(number).items()}


# ---- connections that are cut ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("start", [None, 0])
def test_the_connection_cut_at_every_block(store, host, tmp_path, monkeypatch, ranges, start, record_property):
    host.ranges = ranges
    block = 512
    monkeypatch.setattr(http, "_BLOCK", block)
    file = tmp_path / "m.safetensors"
    if start is not None:
        nz.pull(host.url, file, start)
    kept = None if start is None else file.read_bytes()
    needed = nz.pull(host.url, file, dry_run=True).n_needed
    record_property("operations", len(range(0, needed, block)))
    for cut_at in range(0, needed, block):
        host.budget = cut_at
        with pytest.raises(errors.Error, match="connection ended"):
            nz.pull(host.url, file, connections=1, storage_options=AT_ONCE)
        assert (file.read_bytes() if file.exists() else None) == kept
        host.budget = None
        report = nz.pull(host.url, file, connections=1, storage_options=AT_ONCE)
        if ranges:
            assert (report.n_resumed, report.n_moved) == (cut_at, needed - cut_at)
        assert arrays(file) == contents(store, 3)
        file.unlink()
        if kept is not None:
            file.write_bytes(kept)
    assert not (tmp_path / ".m.safetensors.nearzip-pull").exists()


def test_cut_again_and_again(store, host, tmp_path, monkeypatch):
    """Each attempt brings a little; nothing that came is fetched twice."""
    monkeypatch.setattr(http, "_BLOCK", 256)
    file = tmp_path / "m.npz"
    failures = 0
    while not file.exists():
        host.budget = 700
        try:
            nz.pull(host.url, file, connections=1, storage_options=AT_ONCE)
        except errors.Error:
            failures += 1
    assert failures >= 5
    assert host.object_bytes == sum(row.n_stored for row in store.log())


def test_one_pull_tries_again_by_itself(store, host, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "PAUSE", 0.0)
    monkeypatch.setattr("nearzip.store.pulling.download.PAUSE", 0.0)
    answers = {"left": 3}
    name = next(iter(store._versions.get(0).objects))

    def busy_at_first(handler):
        if answers["left"]:
            answers["left"] -= 1
            handler.send_error(503)
        else:
            handler._send(f"objects/{name}", (tmp_path / "store" / "objects" / name).read_bytes())

    host.answers[f"objects/{name}"] = busy_at_first
    assert nz.pull(host.url, tmp_path / "m.npz").version == 3
    answers["left"] = 10**6
    with pytest.raises(errors.Error, match="the host returned status 503"):
        nz.pull(host.url, tmp_path / "other.npz")
    assert answers["left"] == 10**6 - 5


def test_what_an_earlier_pull_left_is_not_trusted(store, host, tmp_path):
    names = [next(iter(store._versions.get(number).objects)) for number in range(4)]
    folder = tmp_path / ".m.npz.nearzip-pull" / "objects"
    folder.mkdir(parents=True)
    (folder / names[0]).write_bytes(b"damaged")
    (folder / f"{names[1]}.part").write_bytes(b"torn" * 10)
    (folder / f"{names[2]}.part").write_bytes(bytes(10**6))
    (folder / ("f" * 64)).write_bytes(b"of another version")
    (folder.parent / ".new.npz.123.part").write_bytes(b"half")
    nz.pull(host.url, tmp_path / "m.npz")
    assert arrays(tmp_path / "m.npz") == contents(store, 3)
    assert not folder.parent.exists()


# ---- processes that end ----------------------------------------------------------------------------------------

_OPERATIONS = ("open", "replace", "link", "unlink", "mkdir", "rmdir", "fsync", "truncate", "write")


class _Counting:
    """Ends the process, or fails, at the n-th operation on files."""

    def __init__(self, n, act):
        self.n = n
        self.act = act
        self.count = 0

    def step(self):
        self.count += 1
        if self.count == self.n + 1:
            self.act()

    def wrap(self, function):
        def counted(*arguments, **options):
            self.step()
            return function(*arguments, **options)

        return counted


def _instrument(patch, counting):
    for name in _OPERATIONS:
        patch.setattr(os, name, counting.wrap(getattr(os, name)))
    patch.setattr(fileio._NamingFile, "write", counting.wrap(fileio._NamingFile.write))
    append = sys.modules["nearzip.store.pulling.download"]._append

    def stepwise(stream, blocks, tally, stop):
        def each():
            for block in blocks:
                counting.step()
                yield block

        append(stream, each(), tally, stop)

    patch.setattr(sys.modules["nearzip.store.pulling.download"], "_append", stepwise)


def _ended_at(n, url, file):
    """Pull in a child that is ended at its n-th operation; whether it was."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with pytest.MonkeyPatch.context() as patch:
                _instrument(patch, _Counting(n, lambda: os._exit(77)))
                nz.pull(url, file, connections=1, threads=1)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 77), code
    return code == 77


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_the_process_ended_at_every_operation(store, tmp_path, record_property):
    url, file = str(tmp_path / "store"), tmp_path / "m.safetensors"
    store.checkout_file(1, file)
    old, before, after = file.read_bytes(), contents(store, 1), contents(store, 3)
    n = 0
    while _ended_at(n, url, file):
        assert arrays(file) in (before, after), n
        nz.pull(url, file, connections=1)
        assert arrays(file) == after, n
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "store"], n
        file.write_bytes(old)
        n += 1
    record_property("operations", n)
    assert n > 15


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_every_operation_failing(store, tmp_path, reason, record_property):
    url, file = str(tmp_path / "store"), tmp_path / "m.safetensors"
    store.checkout_file(1, file)
    old, before, after = file.read_bytes(), contents(store, 1), contents(store, 3)

    def fail():
        raise OSError(reason, os.strerror(reason))

    n = 0
    while True:
        counting, blamed_the_host = _Counting(n, fail), False
        with pytest.MonkeyPatch.context() as patch:
            _instrument(patch, counting)
            try:
                nz.pull(url, file, connections=1, threads=1)
            except errors.Error as error:
                patch.undo()
                blamed_the_host = isinstance(error, errors.CorruptError)
        if counting.count <= n:
            break
        assert not blamed_the_host, n
        assert arrays(file) in (before, after), n
        nz.pull(url, file, connections=1)
        assert arrays(file) == after, n
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "store"], n
        file.write_bytes(old)
        n += 1
    record_property("operations", n)
    assert n > 15


def test_a_disk_that_is_too_small(store, host, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(errors.NoSpaceError, match="1000 are free"):
        nz.pull(host.url, tmp_path / "m.npz")
    assert host.object_bytes == 0


# ---- hostile hosts ---------------------------------------------------------------------------------------------


def changed(tmp_path, number, **fields):
    """The manifest of a version with other values, and a digest that fits."""
    data = (tmp_path / "store" / "versions" / f"{number:08d}").read_bytes()
    document = json.loads(data.partition(b"\n")[2])
    for name, value in fields.items():
        if name in document:
            document[name] = value
        else:
            document["parts"][0][name] = value
    return seal("version", document)


HOSTILE = {
    "an object outside of the store": (3, {"object": "../../etc/passwd"}, errors.CorruptError, "impossible value"),
    "an absolute object": (3, {"object": "/etc/passwd"}, errors.CorruptError, "impossible value"),
    "an object that is a URL": (3, {"object": "file:///etc/passwd"}, errors.CorruptError, "impossible value"),
    "an object of another digest": (3, {"object": "0" * 64}, errors.NotFoundError, "no such file"),
    "a circle": (1, {"base": 3}, errors.CorruptError, "in a circle"),
    "itself": (3, {"base": 3}, errors.CorruptError, "against itself"),
    "a base that is not there": (3, {"base": 77}, errors.CorruptError, "77, .*is missing"),
    "the wrong base": (3, {"base": 0}, errors.Error, "version 3 cannot be restored"),
    "no base": (3, {"base": None}, errors.Error, "version 3 cannot be restored"),
    "a terabyte": (3, {"n_bytes": 1 << 62}, errors.Error, "bytes"),
    "another length": (3, {"length": None}, errors.CorruptError, "instead of"),
    "another content": (3, {"id": "0" * 32}, errors.CorruptError, "not what was committed"),
    "a tensor that is not there": (3, {"names": ["weight", "nope"]}, errors.CorruptError, "nope"),
    "an order of other tensors": (3, {"order": ["weight"]}, errors.CorruptError, "order"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("held", [None, 1])
def test_hostile_manifests(store, host, tmp_path, what, held):
    number, fields, error, problem = HOSTILE[what]
    file = tmp_path / "m.safetensors"
    if held is not None:
        nz.pull(host.url, file, held)
        if what == "a circle":
            held = None  # ends at what is held
            file.unlink()
    before = file.read_bytes() if file.exists() else None
    if "length" in fields:
        data = changed(tmp_path, number)
        document = json.loads(data.partition(b"\n")[2])
        document["parts"][0]["n_bytes"] += 1
        data = seal("version", document)
    else:
        data = changed(tmp_path, number, **fields)
    host.answers[f"versions/{number:08d}"] = data
    with pytest.raises(error, match=problem):
        nz.pull(host.url, file)
    assert (file.read_bytes() if file.exists() else None) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"store", file.name, f".{file.name}.nearzip-pull"}
    host.answers.clear()
    assert nz.pull(host.url, file).version == 3


def _object(store):
    return f"objects/{next(iter(store._versions.get(3).objects))}"


def test_objects_that_are_damaged(store, host, tmp_path):
    path = _object(store)
    data = (tmp_path / "store" / path).read_bytes()
    for at in range(0, len(data), 97):
        host.answers[path] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(errors.CorruptError, match="SHA-256 differs"):
            nz.pull(host.url, tmp_path / "m.npz", storage_options=AT_ONCE)
    assert not (tmp_path / "m.npz").exists()
    host.answers.clear()
    host.sent.clear()
    assert nz.pull(host.url, tmp_path / "m.npz").n_resumed > 0
    assert host.object_bytes == len(data)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_objects_of_another_length(store, host, tmp_path, change):
    path = _object(store)
    host.answers[path] = change((tmp_path / "store" / path).read_bytes())
    with pytest.raises(errors.CorruptError, match="instead of"):
        nz.pull(host.url, tmp_path / "m.npz")


def _endless(handler):
    """A body without a length and without an end, far more than is to be read."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(1 << 16):
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        return
    raise AssertionError("four gigabytes were read")


@pytest.mark.parametrize("path", ["nearzip-store", "latest", "versions/00000003", "object"])
def test_bodies_without_an_end(store, host, tmp_path, path):
    host.answers[_object(store) if path == "object" else path] = _endless
    if path == "latest":  # only a hint
        assert nz.pull(host.url, tmp_path / "m.npz").version == 3
        return
    with pytest.raises(errors.Error, match=r"longer than|more than"):
        nz.pull(host.url, tmp_path / "m.npz", storage_options=AT_ONCE)
    assert not (tmp_path / "m.npz").exists()


def _says(status, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def _raw(data):
    def answer(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


ANSWERS = {
    "leads to a file": (_says(302, Location="file:///etc/passwd"), "not followed"),
    "leads to ftp": (_says(302, Location="ftp://127.0.0.1/x"), "not followed"),
    "leads to itself": (_says(302, Location="/nearzip-store"), "cannot read"),
    "compressed": (_says(200, Content_Encoding="gzip"), "compressed, unasked"),
    "length of many digits": (_says(200, Content_Length="9" * 5000), "cannot read|checkpoint|not the store"),
    "negative length": (_says(200, Content_Length="-5"), "cannot read|not the store"),
    "no HTTP": (_raw(b"\0" * 100), "cannot read"),
    "endless headers": (_raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000), "cannot read"),
    "a page": (_raw(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "not the store document"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_hostile_answers(store, host, tmp_path, what):
    host.answers["nearzip-store"], problem = ANSWERS[what]
    with pytest.raises(errors.Error, match=problem):
        nz.pull(host.url, tmp_path / "m.npz", storage_options=AT_ONCE)


def test_a_host_that_answers_everything_with_a_page(store, host, tmp_path):
    class Everything(dict):
        def get(self, path, default=None):
            return None if path == "nearzip-store" else b"<html>a page</html>"

    host.answers = Everything()
    with pytest.raises(errors.CorruptError, match="not the version document"):
        nz.pull(host.url, tmp_path / "m.npz")
    assert len(host.paths) < 100


def test_another_part_than_was_asked_for(store, host, tmp_path):
    path = _object(store)
    part = tmp_path / ".m.npz.nearzip-pull" / path
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.part").write_bytes(b"0123456789")
    host.answers[path] = _says(206, Content_Range="bytes 5-99/100")
    with pytest.raises(errors.CorruptError, match="another part"):
        nz.pull(host.url, tmp_path / "m.npz")


def test_a_chain_without_an_end(tmp_path):
    """Manifests that lead on and on are not followed for ever."""
    store = nz.Store(tmp_path / "store", create=True)
    store.commit({"w": np.zeros(3, np.float32)})
    (tmp_path / "store" / "latest").unlink()
    with serving(tmp_path / "store") as host:
        text = (tmp_path / "store" / "versions" / "00000000").read_bytes()
        document = json.loads(text.partition(b"\n")[2])
        name = hashlib.sha256(b"x").hexdigest()
        for number in range(3000):
            document["version"] = number
            document["parts"] = [{"object": name, "n_bytes": 1, "base": number - 1 if number else None, "names": None}]
            host.answers[f"versions/{number:08d}"] = seal("version", document)
        with pytest.raises(errors.LimitError, match="more than 64"):
            nz.pull(host.url, tmp_path / "m.npz", 2000)
        assert len(host.paths) < 200


# ---- answers without an end ------------------------------------------------------------------------------------


def _forever(head, piece):
    """Sends `head`, then `piece` again and again, until the client hangs up."""

    def answer(handler):
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            while True:
                handler.wfile.write(piece * 200)

    return answer


def _slowly(data, pause=0.05):
    """One byte at a time."""

    def answer(handler):
        handler.close_connection = True
        with contextlib.suppress(OSError):
            for i in range(len(data)):
                handler.wfile.write(data[i : i + 1])
                time.sleep(pause)

    return answer


def _redirect_without_end(handler):
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere")
    handler.end_headers()
    _forever(b"", b"x" * 100)(handler)


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "continue": _forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "continue with headers": _forever(b"", b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n"),
    "one header": _forever(b"HTTP/1.1 200 OK\r\na: ", b"b" * 100),
    "headers": _forever(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "status line": _forever(b"HTTP/1.1 200 ", b"OK"),
    "trailers": _forever(_CHUNKED + b"1\r\nn\r\n0\r\n", b"a: b\r\n"),
    "chunk extensions": _forever(_CHUNKED, b"1;" + b"e" * 1000 + b"\r\nn\r\n"),
    "one chunk extension": _forever(_CHUNKED + b"1;", b"e" * 100),
    "body of a redirection": _redirect_without_end,
    "slow status": _slowly(b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "slow headers": _slowly(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100),
    "slow body": _slowly(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"n" * 900),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_answers_without_an_end(store, host, tmp_path, what):
    """Neither the time-out nor a limit of bytes is passed, whatever part of an answer goes on."""
    host.answers["nearzip-store"] = ENDLESS[what]
    options = {"retries": 0, "timeout": 0.5}
    with pytest.raises(errors.Error):
        nz.pull(host.url, tmp_path / "m.npz", max_download=1 << 20, storage_options=options)
    assert not (tmp_path / "m.npz").exists()


@pytest.mark.parametrize("what", ["trailers", "chunk extensions", "slow body"])
def test_objects_without_an_end(store, host, tmp_path, what):
    host.answers[_object(store)] = ENDLESS[what]
    with pytest.raises(errors.Error):
        nz.pull(host.url, tmp_path / "m.npz", storage_options={"retries": 0, "timeout": 0.5})
    assert not (tmp_path / "m.npz").exists()


def test_few_bytes_are_taken_of_an_answer_without_an_end(store, host, tmp_path):
    sent = []

    def answer(handler):
        handler.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                sent.append(handler.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 400))

    host.answers["nearzip-store"] = answer
    with pytest.raises(errors.LimitError, match="before its response"):
        nz.pull(host.url, tmp_path / "m.npz", storage_options=AT_ONCE)
    assert sum(sent) < 16 << 20  # what the sockets hold, and no more


def test_a_store_of_endless_versions(host, tmp_path, monkeypatch):
    """A host that has every version that is asked for: what is read of descriptions is bounded."""
    monkeypatch.setattr(pull_module, "_DOCUMENT_BYTES", 1 << 20)
    template = json.loads((host.root / "versions" / "00000003").read_bytes().partition(b"\n")[2])

    template["parts"][0]["base"] = None

    class Every(dict):
        def get(self, path, default=None):
            if path.startswith("versions/") and not path.endswith(".pruned"):
                return seal("version", {**template, "version": int(path[9:]), "tags": [], "id": "a" * 32})
            return default

    host.answers = Every()
    with pytest.raises(errors.LimitError, match="name the version by its number"):
        nz.pull(host.url, tmp_path / "m.npz", "tag:x", storage_options=AT_ONCE)
