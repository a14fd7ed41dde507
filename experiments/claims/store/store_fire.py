"""A store under fire: writers, readers, pruners, verifiers and repairers in processes of their own, killed at random.

Every process writes down what it was promised and what it saw; at the end, all of it is compared. A version whose
commit returned is restored exactly, or was dropped by a rule; no reader gets wrong values, and none is told of damage
that there is not; every error has a name. From time to time a manifest is damaged on purpose, and repaired.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nearzip as nz
from experiments.lab import record
from nearzip import errors
from nearzip.store.backends import remote
from nearzip.store.manifest import path_of

_BOUND = 1e-3
#: What the pruner keeps, besides tagged versions.
_LAST, _EVERY = 8, 10
_POLICIES = ("forward", "backward", "hop:4")
#: In place of minutes and a day, so that locks of killed processes and objects of killed writers go during a run.
_LEASE_SECONDS, _GRACE_SECONDS = 3.0, 30.0
#: Seconds between two kills. A request to the server that speaks S3 takes tens of milliseconds, a commit many of them.
_PAUSES = {"disk": (0.2, 1.5), "s3": (2.0, 10.0)}
#: Names of workers and how many of each.
_CREW = {"writer": 2, "reader": 2, "pruner": 1, "verifier": 1, "repairer": 1}


@dataclass(frozen=True)
class Place:
    """Where the store is, and where the processes write down what they did."""

    url: str
    options: Mapping[str, Any] | None
    scratch: Path

    def open(self) -> nz.Store:
        return nz.Store(self.url, storage_options=self.options, threads=1)


def tensors(who: int, i: int) -> dict[str, np.ndarray]:
    """What a writer commits: a number of its own, values under a bound, and a tensor that most versions share."""
    rng = np.random.default_rng([who, i])
    return {
        "who": np.array([who, i], np.int64),
        "frozen": np.arange(20_000, dtype=np.int32) + i // 9,
        "w": rng.normal(0, 0.05, 400).astype(np.float32),
    }


def is_right(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether restored arrays are what the writer that they name committed."""
    who, i = (int(n) for n in arrays["who"])
    wanted = tensors(who, i)
    return (
        list(arrays) == list(wanted)
        and np.array_equal(arrays["frozen"], wanted["frozen"])
        and arrays["w"].dtype == np.float32
        and float(np.abs(arrays["w"] - wanted["w"]).max()) <= _BOUND
    )


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of all bits."""
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()[:16]


# ---- what processes write down ---------------------------------------------------------------------------------


class Diary:
    """Events of one process, one line each; a line that was begun when the process was killed is no event."""

    def __init__(self, place: Place, role: str):
        self._path = place.scratch / f"{role}-{os.getpid()}-{time.time_ns()}.log"

    def note(self, what: str, **said: Any) -> None:
        with open(self._path, "ab", buffering=0) as stream:
            stream.write(json.dumps({"what": what, "time": time.time(), **said}).encode() + b"\n")


def _events(scratch: Path) -> list[dict[str, Any]]:
    found = []
    for path in scratch.glob("*.log"):
        *lines, _ = path.read_bytes().split(b"\n")
        found += [json.loads(line) for line in lines]
    return sorted(found, key=lambda event: event["time"])


# ---- the processes ---------------------------------------------------------------------------------------------


def _work(role: str, act: Callable[[Place, Diary, random.Random], str], place: Place, seed: int) -> None:
    remote._LOCK_SECONDS, remote._GRACE = _LEASE_SECONDS, _GRACE_SECONDS
    diary, rng = Diary(place, role), random.Random(seed)
    while True:
        began = time.time()
        try:
            diary.note("done", role=role, act=act(place, diary, rng))
        except errors.BusyError:
            diary.note("busy", role=role)
        except errors.CorruptError as error:
            diary.note("damage", role=role, began=began, error=str(error))
        except errors.NotFoundError as error:
            diary.note("missing", role=role, began=began, error=str(error))
        except errors.Error as error:
            diary.note("failed", role=role, began=began, error=f"{type(error).__name__}: {error}")
        except Exception:
            diary.note("unnamed", role=role, began=began, error=traceback.format_exc()[-2000:])


_written: dict[int, int] = {}
_stores: dict[str, nz.Store] = {}


def _store(place: Place, rng: random.Random) -> nz.Store:
    """Mostly the one that was opened before, which remembers what others have changed since."""
    if "one" not in _stores or rng.random() < 0.1:
        _stores["one"] = place.open()
    return _stores["one"]


def write(place: Place, diary: Diary, rng: random.Random) -> str:
    who = os.getpid()
    i = _written[who] = _written.get(who, -1) + 1
    tags = ["t"] if rng.random() < 0.1 else []
    store = _store(place, rng)
    diary.note("begun", who=who, i=i)
    number = store.commit(tensors(who, i), metrics={"score": rng.random()}, tags=tags, timeout=30)
    diary.note("committed", number=number, who=who, i=i, tagged=bool(tags))
    if rng.random() < 0.3:
        _look(store.checkout(number), number, diary)
    return "commit"


def _look(arrays: Mapping[str, np.ndarray], number: int, diary: Diary) -> None:
    diary.note("read", number=number, digest=digest(arrays), right=is_right(arrays), who=arrays["who"].tolist())


def read(place: Place, diary: Diary, rng: random.Random) -> str:
    store = _store(place, rng)
    act = rng.choice(["number", "latest", "tag", "best", "file", "log", "stat", "specs", "info", "export", "pull"])
    if act in ("log", "stat", "specs", "info"):
        getattr(store, act)()
        return act
    if act == "number":
        number = rng.choice([row.number for row in store.log()] or [0])
        _look(store.checkout(number), number, diary)
    elif act in ("latest", "tag", "best"):
        arrays = store.checkout({"latest": "latest", "tag": "tag:t", "best": "best:score"}[act])
        diary.note("read", number=None, digest=None, right=is_right(arrays), who=arrays["who"].tolist())
    else:
        _to_files(store, place, diary, act)
    return act


def _to_files(store: nz.Store, place: Place, diary: Diary, act: str) -> None:
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        if act == "export":
            for name in store.export(folder, ending=".npz"):
                _look(_loaded(Path(folder, name)), int(name[8:16]), diary)
            return
        path = Path(folder, "m.npz")
        if act == "pull":
            number = nz.pull(place.url, path, storage_options=place.options, threads=1).version
        else:
            number = store.checkout_file("latest", path)
        _look(_loaded(path), number, diary)


def _loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def prune(place: Place, diary: Diary, rng: random.Random) -> str:
    store = _store(place, rng)
    if rng.random() < 0.1:
        store.configure(policy=rng.choice(_POLICIES), timeout=5)
        return "configure"
    store.prune(f"last:{_LAST} every:{_EVERY} tagged", timeout=5)
    time.sleep(rng.uniform(0, 0.3))
    return "prune"


def verify(place: Place, diary: Diary, rng: random.Random) -> str:
    began = time.time()
    level = rng.choice(["quick", "full", "deep"])
    report = _store(place, rng).verify(level)
    if not report.ok:
        text = "; ".join(f"{damage.path}: {damage.problem}" for damage in report.damages)
        diary.note("damage", role="verifier", began=began, error=text[:2000])
    return f"verify {level}"


def repair(place: Place, diary: Diary, rng: random.Random) -> str:
    """Restore what a process of this kind that was killed has left damaged; then damage a manifest and restore it."""
    _repair(place, diary)
    store = place.open()
    with store._backend.maintaining(5):
        number = rng.choice([row.number for row in store.log()])
        diary.note("damaging", number=number)
        store._backend.replace(path_of(number), rng.choice([b"", b"junk", b"nearzip-version 1\n{}"]))
    _repair(place, diary)
    time.sleep(rng.uniform(3, 9))
    return "repair"


def _repair(place: Place, diary: Diary) -> None:
    report = nz.Store.repair(place.url, storage_options=place.options)
    diary.note("repaired", said=report.repaired, lost=report.lost, ok=report.ok)


_ACTS = {"writer": write, "reader": read, "pruner": prune, "verifier": verify, "repairer": repair}


# ---- the fire --------------------------------------------------------------------------------------------------


@dataclass
class _Crew:
    """The processes, each replaced when it is killed."""

    place: Place
    rng: random.Random
    n_kills: int = 0
    running: dict[str, multiprocessing.process.BaseProcess] = field(default_factory=dict)

    def start(self, name: str) -> None:
        role = name.partition(" ")[0]
        arguments = (role, _ACTS[role], self.place, self.rng.getrandbits(32))
        process = multiprocessing.get_context("fork").Process(target=_work, args=arguments, daemon=True)
        process.start()
        self.running[name] = process

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        self.n_kills += 1


def burn(place: Place, seconds: float, seed: int, pauses: tuple[float, float]) -> dict[str, Any]:
    """Keep a store under fire for so many seconds; what happened, and all that should not have.

    `pauses`: seconds between two kills.
    """
    crew = _Crew(place, random.Random(seed))
    names = [f"{role} {i}" for role, n in _CREW.items() for i in range(n)]
    begin = time.monotonic()
    try:
        for name in names:
            crew.start(name)
        while time.monotonic() - begin < seconds:
            time.sleep(crew.rng.uniform(*pauses))
            name = crew.rng.choice(names)
            crew.kill(name)
            crew.start(name)
    finally:
        for name in list(crew.running):
            crew.kill(name)
    return _in_a_process(_judge, place) | {"kills": crew.n_kills, "seconds": round(time.monotonic() - begin, 1)}


def _in_a_process(judge: Callable[[Place], dict[str, Any]], place: Place) -> dict[str, Any]:
    """Drivers of object stores keep threads, which processes that are forked must not inherit."""

    def run() -> None:
        remote._GRACE = _GRACE_SECONDS  # a lease as long as ever: nobody else is there, and the machine may be slow
        (place.scratch / "judged.json").write_text(json.dumps(judge(place)))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process that looks at the store ended with {process.exitcode}; its error is above")
    found: dict[str, Any] = json.loads((place.scratch / "judged.json").read_text())
    return found


# ---- the judgement ---------------------------------------------------------------------------------------------


def _intervals(events: list[dict[str, Any]]) -> list[tuple[float, float, int]]:
    """From when to when manifests were damaged: until a repair that began later has ended."""
    found: list[tuple[float, float, int]] = []
    open_: list[tuple[float, int]] = []
    for event in events:
        if event["what"] == "damaging":
            open_.append((event["time"], event["number"]))
        elif event["what"] == "repaired" and event["ok"]:
            found += [(begun, event["time"], number) for begun, number in open_]
            open_ = []
    return found + [(begun, float("inf"), number) for begun, number in open_]


def _judge(place: Place) -> dict[str, Any]:
    events = _events(place.scratch)
    wrong = _wrong_sights(events)
    left = nz.Store.repair(place.url, storage_options=place.options)
    store = place.open()
    report = store.verify("deep")
    wrong += [f"at the end: {damage.path}: {damage.problem}" for damage in report.damages]
    wrong += [f"lost: {text}" for event in events for text in event.get("lost", ())] + [f"lost: {t}" for t in left.lost]
    wrong += _wrong_versions(store, events)
    acts = Counter(event["act"] for event in events if event["what"] == "done")
    acts.update(f"{event['role']} busy" for event in events if event["what"] == "busy")
    damaged = _intervals(events)
    return {
        "acts": dict(sorted(acts.items())),
        "seconds_damaged": round(sum(min(b, events[-1]["time"]) - a for a, b, _ in damaged), 1),
        "seen_damaged": dict(Counter(event["role"] for event in events if event["what"] in ("damage", "missing"))),
        "commits": sum(event["what"] == "committed" for event in events),
        "reads": sum(event["what"] == "read" for event in events),
        "damaged": sum(event["what"] == "damaging" for event in events),
        "versions": len(store),
        "live": len(store.log()),
        "wrong": wrong[:50],
        "n_wrong": len(wrong),
    }


def _wrong_sights(events: list[dict[str, Any]]) -> list[str]:
    """Values and errors that no process should have seen."""
    damaged = _intervals(events)
    wrong = []
    seen: dict[int, str] = {}
    for event in events:
        what = event["what"]
        if what == "read" and not event["right"]:
            wrong.append(f"wrong values: {event}")
        if (
            what == "read"
            and event["number"] is not None
            and seen.setdefault(event["number"], event["digest"]) != event["digest"]
        ):
            wrong.append(f"other bits than before: {event}")
        excused = any(a <= event["time"] and b >= event.get("began", event["time"]) for a, b, _ in damaged)
        if what in ("unnamed", "failed") or (what == "damage" and not excused):
            wrong.append(f"{what}: {event['role']}: {event['error']}")
        if what == "missing" and not excused and not _may_be_missing(event["error"]):
            wrong.append(f"{what}: {event['role']}: {event['error']}")
    return wrong


def _may_be_missing(error: str) -> bool:
    """A version that was dropped, or a tag that a rebuilt manifest lost; what may be dropped is judged at the end."""
    return "was pruned on" in error or "no version 'tag:t'" in error or "no version 'best:score'" in error


def _wrong_versions(store: nz.Store, events: list[dict[str, Any]]) -> list[str]:
    """Versions that are not what was promised when their commit returned."""
    rows = {row.number: row for row in store.log(pruned=True)}
    newest = len(store)  # several requests each time it is asked
    wrong = [f"no version {number}, and later ones" for number in range(newest) if number not in rows]
    rebuilt = {number for _, _, number in _intervals(events)}
    begun = {(event["who"], event["i"]) for event in events if event["what"] == "begun"}
    found: dict[tuple[int, int], int] = {}
    arrays: dict[int, tuple[int, int]] = {}
    for number, row in rows.items():
        if row.pruned is not None:
            continue
        try:
            restored = store.checkout(number)
        except errors.Error as error:
            wrong.append(f"version {number} cannot be restored: {error}")
            continue
        who, i = arrays[number] = (int(restored["who"][0]), int(restored["who"][1]))
        if not is_right(restored) or (who, i) not in begun:
            wrong.append(f"version {number} is not what was committed")
        if found.setdefault((who, i), number) != number:
            wrong.append(f"versions {found[who, i]} and {number} are one commit")
    for event in (event for event in events if event["what"] == "committed"):
        number = event["number"]
        if number not in rows:
            wrong.append(f"version {number} is gone")
        elif rows[number].pruned is None:
            if arrays.get(number, (event["who"], event["i"])) != (event["who"], event["i"]):
                wrong.append(f"version {number} is another's commit")
        elif number % _EVERY == 0 or (event["tagged"] and number not in rebuilt) or number > newest - _LAST:
            wrong.append(f"version {number} was dropped against the rules")
    return wrong


# ---- places ----------------------------------------------------------------------------------------------------


#: moto looks whether there is a file and then writes it, each request on a thread of its own, so that two writers can
#: both create one. S3 does not let them: requests take turns here.
_SERVER = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
app, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_by_one(environ, start_response):
    with turn:
        return list(app(environ, start_response))
run_simple("127.0.0.1", int(sys.argv[1]), one_by_one, threaded=True)
"""


@contextlib.contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """A server process that speaks S3 on loopback, with a bucket; what fsspec needs to talk to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", _SERVER, str(port)]
    with subprocess.Popen(command, **quiet) as server:  # type: ignore[call-overload]
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                    break
                time.sleep(0.1)
            options = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{port}"}
            # In a process of its own: this one forks, and the driver keeps threads.
            make = f"import s3fs; s3fs.S3FileSystem(**{options!r}).mkdir('bucket')"
            subprocess.run([sys.executable, "-c", make], check=True)
            yield options
        finally:
            server.kill()


def on_fire(kind: str, seconds: float, folder: Path, seed: int = 0) -> dict[str, Any]:
    """A new store on "disk" or "s3" under fire."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(s3()) if kind == "s3" else None
        place = Place(str(folder / "store") if options is None else "s3://bucket/store", options, scratch)
        _in_a_process(_make, place)
        return burn(place, seconds, seed, _PAUSES[kind])


def _make(place: Place) -> dict[str, Any]:
    store = nz.Store(place.url, create=True, bound=nz.Absolute(_BOUND), policy="hop:4", storage_options=place.options)
    diary = Diary(place, "first")
    diary.note("begun", who=0, i=0)
    number = store.commit(tensors(0, 0), metrics={"score": 0.0}, tags=["t"])
    diary.note("committed", number=number, who=0, i=0, tagged=True)
    return {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench store_fire", description=__doc__)
    parser.add_argument("--on", choices=("disk", "s3"), nargs="+", default=["disk", "s3"])
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write results/store_fire.json")
    options = parser.parse_args(arguments)
    path = record.RESULTS / "store_fire.json"
    n_wrong = 0
    for kind in options.on:
        commit = record.commit()
        with tempfile.TemporaryDirectory() as folder:
            found = on_fire(kind, options.seconds, Path(folder), options.seed) | {"commit": commit}
        print(json.dumps({"on": kind, **found}), flush=True)
        n_wrong += found["n_wrong"]
        if options.record:
            before = json.loads(path.read_text())["runs"] if path.exists() else {}
            record.save("store_fire", {"runs": {**before, kind: found}}, ("nearzip", "numpy", "fsspec", "s3fs", "moto"))
    if n_wrong:
        raise SystemExit(f"{n_wrong} things that should not have happened")
