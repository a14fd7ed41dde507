"""SZ3, ZFP and blosc2: bounds kept, and a child process that may die, hang or take memory without harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import nearzip as nz
from nearzip.digests import digest
from nearzip.errors import CorruptError, Error, MissingExtraError, UsageError
from nearzip.stages import Blosc, Coded, Context, Sz3, Zfp
from nearzip.stages.foreign import child
from nearzip.testing import seal, unseal

for package in ("pysz", "zfpy", "blosc2"):
    pytest.importorskip(package)

rng = np.random.default_rng(13)
OLD = {"a": rng.normal(0, 0.1, (80, 50)).astype(np.float32), "b": rng.normal(0, 1, 5), "n": np.arange(4)}
NEW = {
    name: (w + rng.normal(0, 0.01, w.shape)).astype(w.dtype) if w.dtype.kind == "f" else w for name, w in OLD.items()
}
NEW["a"][3, :4] = [np.nan, np.inf, -np.inf, -0.0]
FINITE = np.isfinite(NEW["a"])
PIPES = {"sz3": Sz3(1e-3), "zfp": Zfp(1e-3), "blosc": Blosc()}


def pid() -> int:
    assert child._child is not None
    return child._child.process.pid


def ask() -> bytes:
    """A question that any healthy child answers."""
    return child.run(Blosc.foreign, "decode", Blosc().encode(bytes(100)).data, 2000)


# ---- methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, "abs:1e-4", "rel:0.01", "rms:0.05"])
@pytest.mark.parametrize("base", [None, OLD], ids=["alone", "update"])
@pytest.mark.parametrize("method", ["sz3", "zfp"])
def test_the_bound_is_kept(method, base, bound):
    archive = nz.compress(NEW, base=base, method=method, bound=bound)
    restored = nz.decompress(archive.to_bytes(), base=base)
    x, y = NEW["a"][FINITE].astype(float), restored["a"][FINITE].astype(float)
    allowed = {None: 1e-3, "abs:1e-4": 1e-4, "rel:0.01": 0.01 * np.ptp(x), "rms:0.05": 0.05 * np.sqrt((x**2).mean())}
    assert 0 < np.abs(x - y).max() <= allowed[bound]
    assert restored["a"][~FINITE].tobytes() == NEW["a"][~FINITE].tobytes()
    assert np.array_equal(restored["n"], NEW["n"])


@pytest.mark.parametrize("base", [None, OLD], ids=["alone", "update"])
def test_blosc_keeps_every_bit(base):
    archive = nz.compress(NEW, base=base, method="blosc", bound="abs:1")
    restored = nz.decompress(archive.to_bytes(), base=base)
    assert all(restored[name].tobytes() == w.tobytes() for name, w in NEW.items())


def test_of_predictors_and_none_the_smaller_is_kept():
    for values in (NEW["a"].reshape(-1), np.sin(np.arange(4000) / 50, dtype=np.float32)):
        sizes = {name: len(Sz3(1e-3, name).encode(values).data) for name in ("smaller", "INTERP_LORENZO", "NOPRED")}
        assert sizes["smaller"] == min(sizes["INTERP_LORENZO"], sizes["NOPRED"])
        assert sizes["INTERP_LORENZO"] != sizes["NOPRED"]


@pytest.mark.parametrize("bound", ["lossless", "pwrel:0.1"])
@pytest.mark.parametrize("method", ["sz3", "zfp"])
def test_bounds_that_cannot_be_promised_are_refused(method, bound):
    with pytest.raises(UsageError, match="cannot promise"):
        nz.compress(NEW, method=method, bound=bound)


def test_stages_that_cannot_be_meant_are_refused():
    for kind, value in ((Sz3, 0.0), (Zfp, float("inf")), (Blosc, 0), (Blosc, 256)):
        with pytest.raises(UsageError):
            kind(value)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 1000])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_any_number_of_values_comes_back(n, dtype):
    x = rng.normal(0, 1, n).astype(dtype)
    for stage in (Sz3(1e-3), Zfp(1e-3)):
        context = Context.of(x)
        assert np.abs(stage.decode(stage.encode(x, context), context) - x).max(initial=0) <= 1.01e-3


# ---- the child -------------------------------------------------------------------------------------------------


def test_one_child_serves_the_interpreter():
    ask()
    first = pid()
    for stage in (Sz3(1e-3), Zfp(1e-3)):
        stage.decode(stage.encode(OLD["a"].reshape(-1)), Context.of(OLD["a"].reshape(-1)))
    assert pid() == first


def test_a_child_that_died_is_replaced():
    ask()
    first = pid()
    os.kill(first, signal.SIGKILL)
    assert ask() == bytes(100)
    assert pid() != first


def test_a_child_that_hangs_is_ended(monkeypatch):
    ask()
    first = pid()
    coded = Blosc().encode(bytes(100))
    monkeypatch.setattr(child, "_FREE_SECONDS", 0.03)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(CorruptError, match="died on these bytes, or took too much"):
        Blosc().decode(coded, Context(np.dtype(np.uint8), (100,)))
    monkeypatch.undo()
    assert ask() == bytes(100)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit of memory is Linux's")
def test_memory_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(child, "_FREE_MEMORY", 1 << 20)
    with pytest.raises(CorruptError, match=r"MemoryError|died"):
        child.run(Zfp.codec, "decode", b"x" * 100, 100, dtype="<f8", n=1 << 26, error=0.1)
    monkeypatch.undo()
    assert ask() == bytes(100)


def test_what_claims_too_much_is_refused():
    packed = bytearray(Blosc().encode(bytes(10_000)).data)
    packed[4:8] = (1 << 30).to_bytes(4, "little")
    with pytest.raises(CorruptError, match="claims too much"):
        Blosc().decode(Coded(bytes(packed)), Context(np.dtype(np.float32), (2500,)))


@pytest.mark.parametrize("name", PIPES)
def test_damaged_streams_are_corrupt_or_decode_to_values(name):
    stage = PIPES[name]
    value = NEW["a"].reshape(-1)[200:1200]
    context = Context.of(value)
    coded = stage.encode(value.tobytes() if name == "blosc" else value, context)
    draws = np.random.default_rng(1)
    for i in range(150):
        harmed = bytearray(coded.data)
        if i % 3:
            for at in draws.integers(0, min(len(harmed), 60 if i % 2 else len(harmed)), 1 + i % 4):
                harmed[at] ^= 1 << int(draws.integers(8))
        else:
            del harmed[int(draws.integers(len(harmed))) :]
        try:
            assert len(stage.decode(Coded(bytes(harmed), coded.side), context)) >= 0
        except CorruptError:
            continue


def test_the_checksum_is_looked_at_before_the_foreign_decoder_sees_a_byte(monkeypatch):
    archive = nz.compress({"a": NEW["a"]}, method="sz3")
    harmed = bytearray(archive.to_bytes())
    harmed[60] ^= 1

    def seen(*args, **kwargs):
        raise AssertionError("the decoder was given damaged bytes")

    monkeypatch.setattr(child, "run", seen)
    with pytest.raises(CorruptError, match="checksum differs"):
        nz.decompress(bytes(harmed))


@pytest.mark.parametrize("method", ["sz3", "zfp", "blosc"])
def test_hostile_archives_with_right_checksums_are_corrupt(method):
    import base64

    document, blocks = unseal(nz.compress({"a": OLD["a"]}, method=method).to_bytes())
    for payload in (
        b"",
        b"\0",
        b"\0\1\1",
        b"\0\1\1" + bytes(40),
        b"\0\1\1" + b"\xff" * 500,
        blocks[: len(blocks) // 2],
    ):
        text = base64.b64encode(digest(payload)).decode().rstrip("=")
        block = document["segments"][0]["blocks"][0]
        changed = json.loads(json.dumps(document))
        changed["segments"][0]["blocks"] = [[block[0], len(payload), text]]
        with pytest.raises(CorruptError):
            nz.decompress(seal(changed, payload))


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    child._end()
    try:
        with pytest.raises(MissingExtraError, match=r"needs pysz; install it with: pip install 'nearzip\[sz\]'"):
            nz.compress({"a": OLD["a"]}, method="sz3")
    finally:
        child._end()


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    child._end()
    with pytest.raises(Error, match="cannot start the process"):
        nz.compress({"a": OLD["a"]}, method="sz3")


@pytest.mark.parametrize("text", ["{}", '{"size": -1}', '{"size": 999}', "no JSON", None], ids=repr)
def test_a_child_that_answers_nonsense_is_ended(monkeypatch, tmp_path, text):
    answer = b"\xff" * 64 if text is None else len(text).to_bytes(4, "little") + text.encode()
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys\nsys.stdout.buffer.write({answer!r})\nsys.stdout.buffer.flush()\nsys.stdin.buffer.read()\n"
    )
    monkeypatch.setattr(child, "_SCRIPT", script)
    child._end()
    with pytest.raises(child.CrashError):
        child.run(Zfp.codec, "decode", b"x" * 100, 100, dtype="<f8", n=10, error=0.1)
    assert child._child is None


def test_no_child_outlives_its_interpreter():
    code = textwrap.dedent(
        """
        import numpy as np, nearzip as nz, os, sys
        from nearzip.stages.foreign import child
        nz.compress({"a": np.arange(100, dtype=np.float32)}, method="zfp")
        print(child._child.process.pid, flush=True)
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), 9)
        """
    )
    for how in ("ends", "killed"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=False)
        number = int(done.stdout)
        assert done.stderr == ""
        for _ in range(200):
            if not _runs(number):
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert not _runs(number)


def _runs(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


def _forked(queue) -> None:
    assert child._child is None
    queue.put((ask() == bytes(100), pid()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_has_a_child_of_its_own():
    ask()
    mine = pid()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_forked, args=(queue,))
    process.start()
    right, theirs = queue.get(timeout=60)
    process.join()
    assert right
    assert theirs != mine
    assert ask() == bytes(100)
    assert pid() == mine
