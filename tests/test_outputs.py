"""Where bytes go: files keep permissions and links, devices and pipes get streams, inputs are never overwritten."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.cli import console
from nearzip.fileio import atomic_file, atomic_folder, check_outputs, sync_folder

NEARZIP = [sys.executable, "-m", "nearzip"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    old = rng.normal(size=(60, 50)).astype(np.float32)
    np.savez("old.npz", w=old)
    np.savez("new.npz", w=old + np.float32(1e-3))
    nz.compress_file("old.npz", "old.nz")
    nz.compress_file("new.npz", "update.nz", base="old.npz")
    return tmp_path


def run(*arguments: str, code: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([*NEARZIP, *arguments], capture_output=True, check=False, timeout=120, **options)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done


# ---- inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old.npz", "new.npz", "hard.npz", "soft.npz", "./old.npz"])
def test_an_input_is_never_overwritten(files, name):
    os.link("old.npz", "hard.npz")
    os.symlink("new.npz", "soft.npz")
    before = {each: Path(each).read_bytes() for each in ("old.npz", "new.npz")}
    for call in (
        lambda: nz.compress_file("new.npz", name, base="old.npz", force=True),
        lambda: nz.compress_file("new.npz", "out.nz", base="old.npz", restored=name, force=True),
    ):
        with pytest.raises(errors.UsageError, match="is the input"):
            call()
    if "new" not in name and "soft" not in name:
        with pytest.raises(errors.UsageError, match="is the input"):
            nz.decompress_file("update.nz", name, base="old.npz", force=True)
    with pytest.raises(errors.UsageError, match="is the input"):
        nz.decompress_file("update.nz", "update.nz", base="old.npz", force=True)
    assert {each: Path(each).read_bytes() for each in before} == before
    assert not Path("out.nz").exists()


def test_the_command_line_keeps_plans_inputs_and_originals(files):
    Path("plan.json").write_text("{}")
    done = run("compress", "new.npz", "-o", "plan.json", "--plan", "plan.json", "--force", code=2)
    assert b"is the input plan.json" in done.stderr
    done = run("compare", "old.npz", "new.npz", "--plot", "old.npz.png", "--force", code=0)
    os.link("old.npz", "old.png")
    done = run("compare", "old.npz", "new.npz", "--plot", "old.png", "--force", code=2)
    assert b"is the input old.npz" in done.stderr


def test_one_name_for_two_outputs_is_refused(files):
    os.symlink("out.nz", "also.npz")
    with pytest.raises(errors.UsageError, match="two outputs"):
        check_outputs(["out.nz", "also.npz"], force=True)
    with pytest.raises(errors.UsageError):
        nz.compress_file("new.npz", "out.npz", restored="out.npz")


def test_files_of_a_store_and_of_an_input_folder_are_kept(files):
    store = nz.Store("runs", create=True)
    store.commit_file("old.npz")
    inside = next(path for path in Path("runs").rglob("*") if path.is_file())
    os.link(inside, "linked.npz")  # by another name it is another file
    with pytest.raises(errors.UsageError, match="part of the input"):
        store.checkout_file(0, inside, force=True)
    assert store.verify().ok
    os.mkdir("model")
    os.rename("new.npz", "model/new.npz")
    with pytest.raises(errors.UsageError, match="part of the input"):
        nz.compress_file("model", "model/new.npz", force=True)


# ---- what is overwritten ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o755])
def test_permissions_of_what_is_overwritten_are_kept(files, mode):
    Path("out.nz").write_bytes(b"old")
    os.chmod("out.nz", mode)
    nz.compress_file("new.npz", "out.nz", force=True)
    assert stat.S_IMODE(os.stat("out.nz").st_mode) == mode
    assert nz.decompress("out.nz")["w"].shape == (60, 50)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_owner_of_what_is_overwritten_is_kept(files):
    Path("out.nz").write_bytes(b"old")
    os.chown("out.nz", 12, 34)
    nz.compress_file("new.npz", "out.nz", force=True)
    assert (os.stat("out.nz").st_uid, os.stat("out.nz").st_gid) == (12, 34)


def test_links_stay_and_what_they_point_to_is_replaced(files):
    os.mkdir("data")
    Path("data/real.nz").write_bytes(b"old")
    os.symlink("data/real.nz", "link.nz")
    os.symlink("link.nz", "second.nz")
    nz.compress_file("new.npz", "second.nz", force=True)
    assert os.path.islink("second.nz")
    assert os.path.islink("link.nz")
    assert nz.decompress("data/real.nz")["w"].shape == (60, 50)
    with pytest.raises(errors.UsageError, match="exists already"):
        nz.compress_file("new.npz", "link.nz")
    os.symlink("data/later.nz", "dangling.nz")
    nz.compress_file("new.npz", "dangling.nz", force=True)
    assert os.path.islink("dangling.nz")
    assert Path("data/later.nz").is_file()
    os.symlink("gone/later.nz", "lost.nz")
    with pytest.raises(errors.NotFoundError, match="no such directory"):
        nz.compress_file("new.npz", "lost.nz", force=True)
    os.symlink("loop.nz", "loop.nz")
    with pytest.raises(errors.Error):
        nz.compress_file("new.npz", "loop.nz", force=True)
    assert sorted(os.listdir("data")) == ["later.nz", "real.nz"]


def test_pull_keeps_links_and_permissions(files):
    store = nz.Store("runs", create=True)
    store.commit_file("old.npz")
    os.mkdir("models")
    os.symlink("models/real.npz", "link.npz")
    nz.pull("runs", "link.npz")
    os.chmod("models/real.npz", 0o600)
    store.commit_file("new.npz")
    assert nz.pull("runs", "link.npz").held == 0
    assert os.path.islink("link.npz")
    assert stat.S_IMODE(os.stat("models/real.npz").st_mode) == 0o600
    assert np.array_equal(np.load("link.npz")["w"], np.load("new.npz")["w"])


def test_folders_that_cannot_be_synced_are_no_failure(tmp_path, monkeypatch):
    def refuse(number):
        raise OSError(number, os.strerror(number))

    for number in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
        monkeypatch.setattr(os, "fsync", lambda handle, number=number: refuse(number))
        sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


# ---- pipes, devices, streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_gets_the_bytes_and_stays_a_pipe(files, force):
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_bytes()))
    reader.start()
    nz.compress_file("new.npz", "pipe", force=force)
    reader.join(30)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert np.array_equal(nz.decompress(got[0])["w"], np.load("new.npz")["w"])


def test_a_pipe_serves_as_input(files):
    os.mkfifo("pipe")
    for name in ("new.npz", "old.nz"):
        data = Path(name).read_bytes()
        writer = threading.Thread(target=lambda data=data: Path("pipe").write_bytes(data))
        writer.start()
        nz.compress_file("pipe", "out.nz", force=True)
        writer.join(30)
        assert nz.decompress("out.nz")["w"].shape == (60, 50)
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(Path("old.nz").read_bytes()))
    writer.start()
    assert nz.decompress("pipe")["w"].shape == (60, 50)
    writer.join(30)


def test_sockets_and_block_devices_are_refused(files):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(errors.UsageError, match="neither a file nor a pipe"):
            nz.compress_file("new.npz", "socket", force=True)
        assert stat.S_ISSOCK(os.stat("socket").st_mode)


def test_binary_streams_in_python(files):
    packed = io.BytesIO()
    with open("new.npz", "rb") as source:
        report = nz.compress_file(source, packed)
    assert len(packed.getvalue()) == report.n_bytes
    unpacked = io.BytesIO()
    nz.decompress_file(io.BytesIO(packed.getvalue()), unpacked, ending=".npz")
    unpacked.seek(0)
    assert np.array_equal(np.load(unpacked)["w"], np.load("new.npz")["w"])
    restored = io.BytesIO()
    nz.decompress_file(packed.getvalue(), restored)
    Path("out.safetensors").write_bytes(restored.getvalue())
    assert nz.compare("out.safetensors", "new.npz").tensors


def test_nothing_is_written_to_a_stream_if_the_work_fails(files):
    stream = io.BytesIO()
    Path("bad.npz").write_bytes(Path("new.npz").read_bytes()[:400])
    with pytest.raises(errors.Error):
        nz.compress_file("bad.npz", stream)

    def fail():
        with atomic_file(stream) as out:
            out.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stream.getvalue() == b""


def test_dash_is_stdin_and_stdout(files):
    done = run("compress", "-", "-o", "-", input=Path("new.npz").read_bytes())
    assert b"wrote" in done.stderr
    assert np.array_equal(nz.decompress(done.stdout)["w"], np.load("new.npz")["w"])
    back = run("decompress", "-", "-o", "-", "--to", "npz", input=done.stdout)
    assert np.array_equal(np.load(io.BytesIO(back.stdout))["w"], np.load("new.npz")["w"])
    safe = run("decompress", "-", "-o", "-", "--json", input=done.stdout)
    assert safe.stdout[8:10] == b'{"'
    assert b'"message_type": "summary"' in safe.stderr
    run("compress", "-", "--base", "-", "-o", "x.nz", code=2, input=b"")
    run("compress", "new.npz", "-o", "-", "--restored", "-", code=2)
    assert not Path("-").exists()
    store = nz.Store("runs", create=True)
    store.commit_file("new.npz")
    assert run("store", "checkout", "runs", "-o", "-").stdout[8:10] == b'{"'


def test_dash_is_stdin_for_looking(files):
    archive, old = (files / "old.nz").read_bytes(), (files / "old.npz").read_bytes()
    assert b"60x50" in run("inspect", "-", input=archive).stdout
    assert b"every tensor decodes" in run("inspect", "update.nz", "--verify", "--base", "-", input=old).stdout
    for arguments in (("-", "new.npz"), ("old.npz", "-")):
        piped = old if arguments[0] == "-" else (files / "new.npz").read_bytes()
        document = json.loads(run("compare", *arguments, "--json", input=piped).stdout)
        assert (document["a"], document["b"]) == arguments
        assert document["total"]["max_abs_error"] == pytest.approx(1e-3, rel=1e-3)
    run("compare", "-", "-", input=old, code=2)
    run("inspect", "-", "--verify", "--base", "-", input=old, code=2)


def test_long_work_writes_lines_into_a_log(monkeypatch, capsys):
    """Where there is no terminal for a bar: after ten seconds, and then ever more rarely."""
    now = 0.0
    monkeypatch.setattr("nearzip.cli.console.time.monotonic", lambda: now)
    with console.progress("compress", as_json=False) as report:
        for now in range(300):
            report(now * 10**6, 300 * 10**6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "nearzip: compress: 10.0 MB of 300 MB, 3 %, 10 s"
    assert 4 < len(lines) < 10


def test_dev_stdout_is_stdout(files):
    done = subprocess.run(
        [*NEARZIP, "compress", "new.npz", "-o", "/dev/stdout"],
        capture_output=True,
        check=True,
    )
    assert nz.decompress(done.stdout)["w"].shape == (60, 50)


def test_no_binary_on_a_terminal(files):
    import pty

    master, slave = pty.openpty()
    done = subprocess.run(
        [*NEARZIP, "compress", "new.npz", "-o", "-"], stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert b"is a terminal" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [("methods",), ("--help",), ("methods", "--json"), ("compress", "new.npz", "-o", "x.nz"),
                  ("compress", "new.npz", "-o", "-"), ("inspect", "old.nz")], ids=" ".join)  # fmt: skip
def test_a_full_disk_at_stdout_takes_one_line(files, arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*NEARZIP, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    lines = [line for line in done.stderr.splitlines() if b"error" in line]
    assert done.returncode == 3
    assert len(lines) == 1
    assert b"standard output: cannot write: No space left" in lines[0]
    assert b"Traceback" not in done.stderr
    assert b"fault of nearzip" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_at_stderr_changes_no_exit_code(files):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*NEARZIP, "inspect", "gone.nz"], stderr=full, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 10


# ---- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "out", {"a"}) as folder:
            (folder / "a").write_bytes(b"1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    for content in (b"1", b"2"):
        with atomic_folder(tmp_path / "out", {"a", "sub/b"}, force=True) as folder:
            (folder / "sub").mkdir()
            (folder / "sub/b").write_bytes(content)
        assert (tmp_path / "out/sub/b").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(errors.UsageError, match="exists already"), atomic_folder(tmp_path / "out", {"sub/b"}):
        pass
    (tmp_path / "out/mine.txt").write_text("notes")
    with (
        pytest.raises(errors.UsageError, match=r"mine\.txt.*would be lost"),
        atomic_folder(tmp_path / "out", {"sub/b"}, force=True),
    ):
        pass
    assert (tmp_path / "out/mine.txt").read_text() == "notes"


# ---- interruption ----------------------------------------------------------------------------------------------


def test_ctrl_c_while_modules_load_takes_one_line(files):
    program = (
        "import os, signal, sys, importlib.abc\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from nearzip.cli import main\n"
        "sys.argv = ['nearzip', 'inspect', 'old.nz']\n"
        "main()\n"
    )
    for module in ("click", "numpy", "nearzip.cli.looking", "nearzip.store.repository", "rich.table", "nearzip._core"):
        done = subprocess.run(
            [sys.executable, "-c", program, module], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 130, (module, done.stderr)
        assert done.stderr == "nearzip: error: interrupted; no part of a file was left behind\n", module


def test_a_command_imports_only_what_it_needs():
    code = (
        "import sys\nimport nearzip.cli.commands\n"
        "loaded = {'numpy', 'rich', 'nearzip.api', 'nearzip.store'} & set(sys.modules)\n"
        "raise SystemExit(', '.join(sorted(loaded)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
