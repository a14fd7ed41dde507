"""The example app on Flower's own runtimes: its simulation (Ray), and a SuperLink with SuperNodes on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"
ROUND = re.compile(r"^round (\d+): (\d+) bytes up, (\d+) down", re.MULTILINE)
N_BYTES = 19_240  # of the network, float32


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A copy of the app. Flower would install what the app depends on; it is here."""
    pytest.importorskip("flwr.serverapp.strategy", reason="needs the extra flower")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    folder = tmp_path / "app"
    shutil.copytree(EXAMPLE, folder)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return folder


def output(folder, *arguments):
    """What `flwr run` streams until the run ends."""
    command = ["flwr", "run", ".", "here", "--stream", "-c", "num-rounds=3", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def check(text, n_nodes):
    """Three rounds; the first model goes down whole, all else takes few bytes."""
    rounds = [(int(turn), int(up), int(down)) for turn, up, down in ROUND.findall(text)]
    assert [turn for turn, _, _ in rounds] == [1, 2, 3], text[-3000:]
    for turn, up, down in rounds:
        assert 0 < up < n_nodes * N_BYTES / 20
        assert 0 < down < n_nodes * N_BYTES / (1 if turn == 1 else 20)
    assert float(re.search(r"accuracy (0\.\d+)", text)[1]) > 0.3


def free_ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(port, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


@contextlib.contextmanager
def running(folder, name, *arguments):
    """A program of Flower's; what it says is in a file beside the app."""
    with open(folder.parent / f"{name}.log", "wb") as log:
        process = subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def superlink(folder, port, *more):
    """All interfaces of a SuperLink, since Flower 1.42 on one port."""
    (folder.parent / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port), *more)
    with running(folder, "link", *command) as process:
        wait_for(port, process)
        yield


def test_the_simulation_runs_the_app(app):
    pytest.importorskip("ray", reason="needs ray (flwr[simulation])")
    with superlink(app, *free_ports(1), "--simulation"):
        check(output(app, "--federation-config", "num-supernodes=4"), 4)


def test_superlink_and_supernodes_run_the_app(app):
    port, *nodes = free_ports(3)
    with contextlib.ExitStack() as stack:
        stack.enter_context(superlink(app, port))
        for i, own in enumerate(nodes):
            node = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1",
                    "--port", str(own), "--node-config", f"partition-id={i}")  # fmt: skip
            wait_for(own, stack.enter_context(running(app, f"node{i}", *node)))
        check(output(app), 2)
