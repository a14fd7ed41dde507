"""Several writers at once, on a disk, in memory and on S3 (moto's server, on loopback): no version lost or torn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from experiments.claims.store import store_fire
from nearzip import errors
from store.helpers import history, memory_url, same

WRITER = """
import sys, os
os.environ["NEARZIP_THREADS"] = "1"
import numpy as np, nearzip as nz
url, who, n, options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
store = nz.Store(url, storage_options=options)
for i in range(n):
    tensors = {"w": np.full(50, who * 10_000 + i, np.float32)}
    number = store.commit(tensors, metadata={"who": str(who), "i": str(i)}, timeout=600)
    print(number, flush=True)
"""


def write_at_once(url: str, writers: int, n: int, options: dict | None = None) -> None:
    """Every writer commits n versions; afterwards every version is there once, in its writer's order."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NEARZIP_THREADS": "1"}
    arguments = [[sys.executable, "-c", WRITER, url, str(who), str(n), repr(options)] for who in range(writers)]
    running = [subprocess.Popen(a, env=environment, stdout=subprocess.PIPE, text=True) for a in arguments]
    told = [[int(line) for line in process.communicate()[0].split()] for process in running]
    assert [process.returncode for process in running] == [0] * writers
    store = nz.Store(url, storage_options=options)
    check_all_there(store, told, writers, n)


def check_all_there(store: nz.Store, told: list[list[int]], writers: int, n: int) -> None:
    rows = store.log()
    assert [row.number for row in rows] == list(range(writers * n))
    assert sorted(number for numbers in told for number in numbers) == list(range(writers * n))
    for who, numbers in enumerate(told):
        assert numbers == sorted(numbers)
        assert [rows[number].metadata for number in numbers] == [{"who": str(who), "i": str(i)} for i in range(n)]
    for number in range(0, writers * n, max(1, writers * n // 20)):
        said = rows[number].metadata
        assert (store.checkout(number)["w"] == int(said["who"]) * 10_000 + int(said["i"])).all()
    assert store.verify("full").ok


def test_writers_on_a_disk(tmp_path):
    nz.Store(tmp_path / "s", create=True, policy="hop:5")
    write_at_once(str(tmp_path / "s"), 3, 12)


@pytest.mark.long
@pytest.mark.parametrize(("writers", "n"), [(2, 1000), (8, 250)])
def test_many_writers_on_a_disk(tmp_path, writers, n):
    nz.Store(tmp_path / "s", create=True, policy="hop:5")
    write_at_once(str(tmp_path / "s"), writers, n)


def in_threads(url: str, writers: int, n: int) -> None:
    told: list[list[int]] = [[] for _ in range(writers)]
    failed: list[BaseException] = []

    def write(who: int) -> None:
        try:
            store = nz.Store(url, threads=1)
            for i in range(n):
                tensors = {"w": np.full(50, who * 10_000 + i, np.float32)}
                told[who].append(store.commit(tensors, metadata={"who": str(who), "i": str(i)}))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    check_all_there(nz.Store(url), told, writers, n)


def test_writers_in_memory():
    url = memory_url()
    nz.Store(url, create=True, policy="hop:5")
    in_threads(url, 4, 8)


@pytest.mark.long
@pytest.mark.parametrize(("writers", "n"), [(2, 1000), (8, 250)])
def test_many_writers_in_memory(writers, n):
    url = memory_url()
    nz.Store(url, create=True, policy="hop:5")
    in_threads(url, writers, n)


# ---- S3 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3():
    """A real server process that speaks S3, and what fsspec needs to talk to it."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with store_fire.s3() as options:
        yield options


@pytest.fixture(scope="module")
def counted():
    """Requests that the S3 driver makes in this process."""
    import s3fs

    calls: list[str] = []
    original = s3fs.S3FileSystem._call_s3

    async def call(self, method, *args, **kwargs):
        calls.append(method if isinstance(method, str) else method.__name__)
        return await original(self, method, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = call
    yield calls
    s3fs.S3FileSystem._call_s3 = original


def test_a_store_on_s3(s3, counted):
    store = nz.Store("s3://bucket/one", create=True, bound="abs:1e-3", policy="hop:3", storage_options=s3)
    versions = history(5)
    requests = []
    for i, version in enumerate(versions):
        counted.clear()
        assert store.commit(version, metrics={"accuracy": i}) == i
        requests.append(len(counted))
    # The object, two to see that no other version came, manifest and hint.
    assert max(requests[1:]) <= 1 + 4, requests
    counted.clear()
    other = nz.Store("s3://bucket/one", storage_options=s3)
    restored = other.checkout("latest")
    assert np.abs(restored["weight"] - versions[4]["weight"]).max() <= 1e-3
    # Settings, hint, two manifests and a look beyond them, two objects: the driver asks twice for each.
    assert len(counted) <= 14
    before = {i: store.checkout(i) for i in range(5)}
    with pytest.raises(errors.UsageError, match="has policy"):
        nz.Store("s3://bucket/one", policy="forward", storage_options=s3)
    report = store.prune("last:1 0")
    assert report.dropped == (1, 2, 3)
    assert all(same(nz.Store("s3://bucket/one", storage_options=s3).checkout(i), before[i]) for i in (0, 4))
    assert store.verify("deep").ok
    with pytest.raises(errors.NotFoundError):
        nz.Store("s3://bucket/none", storage_options=s3)


def test_the_maintenance_lock_on_s3(s3):
    one = nz.Store("s3://bucket/lock", create=True, storage_options=s3)
    two = nz.Store("s3://bucket/lock", storage_options=s3)
    one.commit(history(1)[0])
    with one._backend.maintaining(0):
        with pytest.raises(errors.BusyError, match="try again later"):
            two.prune("all", timeout=0)
        assert two.commit(history(2)[1]) == 1  # commits need no lock
    assert two.prune("all", timeout=5).dropped == ()


def test_writers_on_s3(s3):
    nz.Store("s3://bucket/few", create=True, policy="hop:5", storage_options=s3)
    write_at_once("s3://bucket/few", 2, 6, s3)


@pytest.mark.long
@pytest.mark.parametrize(("writers", "n"), [(2, 1000), (8, 250)])
def test_many_writers_on_s3(s3, writers, n):
    url = f"s3://bucket/many{writers}"
    nz.Store(url, create=True, policy="hop:5", storage_options=s3)
    write_at_once(url, writers, n, s3)


# ---- kill -9 ---------------------------------------------------------------------------------------------------

VICTIM = """
import sys, os, numpy as np, nearzip as nz
store = nz.Store(sys.argv[1], threads=1)
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
while True:
    w = rng.normal(size=2000).astype(np.float32)
    number = store.commit({"w": w}, metadata={"sum": repr(float(w.sum(dtype=np.float64)))})
    print(number, flush=True)
    if number % 4 == 3:
        store.prune("last:3")
"""


def killed(root: Path, seed: int) -> int:
    """Kill a process that commits and prunes, some time; the last number that it told."""
    arguments = [sys.executable, "-c", VICTIM, str(root), str(seed)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(np.random.default_rng(seed).uniform(0, 0.25))
        os.kill(process.pid, signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split("\n")[:-1]]
    return told[-1] if told else -1


def check_survivors(root: Path, told: int) -> None:
    store = nz.Store(root)
    rows = store.log()
    assert not rows or rows[-1].number >= told
    assert told < 0 or rows
    for row in rows:
        total = store.checkout(row.number)["w"].sum(dtype=np.float64)
        assert repr(float(total)) == row.metadata["sum"]
    assert store.verify("full").ok


def test_killed_at_random(tmp_path):
    nz.Store(tmp_path / "s", create=True, policy="hop:3")
    for seed in range(3):
        check_survivors(tmp_path / "s", killed(tmp_path / "s", seed))


@pytest.mark.long
def test_killed_at_random_500_times(tmp_path):
    for policy in ("forward", "backward", "hop:3"):
        root = tmp_path / policy.replace(":", "")
        nz.Store(root, create=True, policy=policy)
        for seed in range(167):
            check_survivors(root, killed(root, seed))
