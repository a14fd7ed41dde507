"""Updating a client's file from a host of files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.checkpoints import open_checkpoint
from nearzip.cli import cli
from store.helpers import history, memory_url, network, same, updated
from store.hosts import nginx, python_host, serving


def read(path):
    return {name: np.array(array) for name, array in open_checkpoint(path).arrays()}


def equal(one, other):
    """Whatever the order: safetensors has its own."""
    return same({name: one[name] for name in sorted(one)}, {name: other[name] for name in sorted(other)})


@pytest.fixture
def store(tmp_path):
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3), policy="hop:4")
    for i, version in enumerate(history(7, 4000)):
        store.commit(version, metrics={"accuracy": i % 3}, tags=["four"] if i == 4 else [])
    return store


@pytest.fixture
def host(store, tmp_path):
    with serving(tmp_path / "store") as host:
        yield host


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_every_way_leads_to_what_checkout_gives(store, host, tmp_path, ending):
    file = tmp_path / f"model.{ending}"
    for number in (1, 3, 3, 5, 2, 6, 0):
        report = nz.pull(host.url, file, number)
        assert report.version == number
        assert equal(read(file), store.checkout(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "store"]


def test_only_the_deltas_from_what_is_held_are_fetched(store, host, tmp_path):
    file = tmp_path / "model.safetensors"
    sizes = {row.number: row.n_stored for row in store.log()}
    assert nz.pull(host.url, file, 1).held is None
    host.sent.clear()
    report = nz.pull(host.url, file, 3)
    assert (report.held, report.route, report.n_needed) == (1, (2, 3), sizes[2] + sizes[3])
    assert report.n_moved == report.n_needed == host.object_bytes
    described = sum(n for path, n in host.sent if not path.startswith("objects/"))
    assert report.n_described == described > 0
    assert report.n_full == sum(array.nbytes for array in store.checkout(3).values())
    assert report.ratio == report.n_full / report.n_needed > 3
    assert report.seconds(8.0) == (report.n_needed / 1e6, report.n_full / 1e6)
    host.sent.clear()
    report = nz.pull(host.url, file, 3)
    assert (report.route, report.n_moved, host.object_bytes) == ((), 0, 0)
    report = nz.pull(host.url, file, 5)  # there is a keyframe between
    assert report.route == (4, 5)


def test_a_file_that_checkout_wrote_is_known(store, host, tmp_path):
    file = tmp_path / "model.npz"
    store.checkout_file(2, file)
    assert nz.pull(host.url, file, 3).route == (3,)


def test_selectors(store, host, tmp_path):
    for selector, number in (("latest", 6), ("tag:four", 4), ("best:accuracy", 5), (0, 0)):
        assert nz.pull(host.url, tmp_path / "m.npz", selector).version == number
    with pytest.raises(errors.NotFoundError, match="nope"):
        nz.pull(host.url, tmp_path / "m.npz", "tag:nope")


def test_a_tensor_that_did_not_change_is_taken_from_the_file(tmp_path):
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3), policy="hop:3")
    frozen = np.random.default_rng(0).normal(0, 1, (200, 200)).astype(np.float32)
    versions = [{"frozen": frozen, **version} for version in history(6)]
    for version in versions:
        store.commit({**version, "frozen": store.checkout()["frozen"]} if len(store) else version)
    with serving(tmp_path / "store") as host:
        file = tmp_path / "model.safetensors"
        assert nz.pull(host.url, file, 2).n_needed > 50_000
        for number in (5, 4, 3, 5):  # keyframes of all else, some of them before what is held
            report = nz.pull(host.url, file, number)
            assert report.n_needed < 10_000, number
            assert equal(read(file), store.checkout(number))


@pytest.mark.parametrize("policy", ["forward", "backward", "hop:1"])
def test_policies(tmp_path, policy):
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3), policy=policy)
    for version in history(4):
        store.commit(version)
    with serving(tmp_path / "store") as host:
        for number in (0, 2, 3, 1):
            nz.pull(host.url, tmp_path / "m.npz", number)
            assert equal(read(tmp_path / "m.npz"), store.checkout(number))


def test_other_places_than_web_hosts(tmp_path):
    url = memory_url()
    store = nz.Store(url, create=True)
    versions = history(3)
    for version in versions:
        store.commit(version)
    report = nz.pull(url, tmp_path / "m.npz", 0)
    assert report.n_moved == report.n_needed > 0
    assert nz.pull(url, tmp_path / "m.npz").route == (1, 2)
    assert equal(read(tmp_path / "m.npz"), versions[2])


def test_metadata_and_structure_come_along(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"model": {"w": torch.arange(6.0)}, "epoch": 3, "rates": [0.5, 0.25]}
    torch.save(state, tmp_path / "in.pt")
    store = nz.Store(tmp_path / "store", create=True)
    store.commit_file(tmp_path / "in.pt", metadata={"by": "us"})
    with serving(tmp_path / "store") as host:
        nz.pull(host.url, tmp_path / "out.pt")
        nz.pull(host.url, tmp_path / "out.safetensors")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert (found["epoch"], found["rates"]) == (3, [0.5, 0.25])
    assert open_checkpoint(tmp_path / "out.safetensors").metadata == {"by": "us"}


# ---- hosts -----------------------------------------------------------------------------------------------------


def test_nginx(store, tmp_path):
    with nginx(tmp_path / "store", tmp_path / "nginx") as url:
        file = tmp_path / "m.npz"
        assert nz.pull(url, file, 1).route == (0, 1)
        assert nz.pull(url, file).version == 6
        assert equal(read(file), store.checkout())
        assert same(nz.Store(url).checkout("tag:four"), store.checkout(4))
        assert len(nz.Store(url).log()) == 7
        with pytest.raises(errors.UsageError, match="read only"):
            nz.Store(url).commit(network())
        with pytest.raises(errors.NotFoundError, match="no store here"):
            nz.Store(f"{url}/elsewhere")
        # what an earlier pull left is continued by a range
        (name, length), *_ = nz.Store(url)._versions.get(0).objects.items()
        part = tmp_path / ".m.npz.nearzip-pull" / "objects" / f"{name}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes((tmp_path / "store" / "objects" / name).read_bytes()[:1000])
        report = nz.pull(url, file, 0)
        assert (report.n_resumed, report.n_moved) == (1000, length - 1000)


def test_nginx_that_wants_a_password(store, tmp_path):
    (tmp_path / "users").write_text("me:{PLAIN}secret word\n")
    with nginx(
        tmp_path / "store", tmp_path / "nginx", f"auth_basic x; auth_basic_user_file {tmp_path / 'users'};"
    ) as url:
        (tmp_path / "users").chmod(0o644)
        with pytest.raises(errors.Error, match="the host returned status 401"):
            nz.pull(url, tmp_path / "m.npz")
        private = url.replace("http://", "http://me:secret%20word@")
        assert nz.pull(private, tmp_path / "m.npz").version == 6
        assert "secret" not in repr(nz.Store(private))


def test_pythons_own_server(store, tmp_path):
    with python_host(tmp_path) as url:
        file = tmp_path / "m.npz"
        for number in (2, 6):
            nz.pull(f"{url}/store/", file, number)
            assert equal(read(file), store.checkout(number))


def test_headers_and_query_are_sent_to_the_host_alone(store, host, tmp_path):
    with serving(tmp_path / "store") as other:

        def elsewhere(handler):
            handler.send_response(302)
            handler.send_header("Location", f"{other.url}/latest")
            handler.end_headers()

        host.answers["latest"] = elsewhere
        options = {"headers": {"X-Key": "secret"}}
        assert nz.pull(f"{host.url}?key=k", tmp_path / "m.npz", storage_options=options).version == 6
    assert all(headers["X-Key"] == "secret" for headers in host.headers)
    assert other.paths == ["latest"]
    assert "X-Key" not in other.headers[0]


def test_buckets_that_say_forbidden_for_what_is_not_there(store, host, tmp_path):
    host.missing_is = 403
    assert nz.pull(host.url, tmp_path / "m.npz").version == 6
    with pytest.raises(errors.Error, match="returned status 403"):
        nz.Store(f"{host.url}/elsewhere")


def test_a_store_without_the_hint(store, host, tmp_path):
    (tmp_path / "store" / "latest").unlink()
    assert nz.pull(host.url, tmp_path / "m.npz").version == 6


def test_a_store_that_was_pruned_while_its_disk_was_full(store, host, tmp_path):
    manifest = tmp_path / "store" / "versions" / "00000002"
    manifest.rename(f"{manifest}.pruned")
    assert nz.pull(host.url, tmp_path / "m.npz", 3).version == 3
    with pytest.raises(errors.NotFoundError, match="pruned"):
        nz.pull(host.url, tmp_path / "m.npz", 2)


# ---- what the file is ------------------------------------------------------------------------------------------


def test_a_file_that_holds_something_else_is_not_replaced_unasked(store, host, tmp_path):
    file = tmp_path / "m.safetensors"
    nz.decompress_file(_archive(tmp_path, network(9)), file)
    before = file.read_bytes()
    with pytest.raises(errors.UsageError, match=r"holds neither version 6 of .* nor one near it; --force"):
        nz.pull(host.url, file)
    assert file.read_bytes() == before
    assert nz.pull(host.url, file, force=True).held is None
    assert equal(read(file), store.checkout())
    file.write_bytes(b"no network")
    with pytest.raises(errors.UsageError, match=r"safetensors.*--force"):
        nz.pull(host.url, file)
    assert nz.pull(host.url, file, force=True).version == 6


def _archive(tmp_path, tensors):
    nz.compress(tensors).save(tmp_path / "a.nz")
    return tmp_path / "a.nz"


@pytest.mark.parametrize(("arguments", "options", "problem"), [
    (("m.nz",), {}, "ending"), (("no/m.npz",), {}, "no such directory"), (("m.npz", "?"), {}, "cannot read the vers"),
    (("m.npz",), {"connections": 0}, "connections"), (("m.npz",), {"storage_options": {"token": 1}}, "not token"),
    (("folder.npz",), {"force": True}, "directory"),
])  # fmt: skip
def test_what_cannot_be_meant(store, host, tmp_path, arguments, options, problem):
    (tmp_path / "folder.npz").mkdir()
    name, *selector = arguments
    with pytest.raises(errors.Error, match=problem):
        nz.pull(host.url, tmp_path / name, *selector, **options)


def test_dry_run_and_limit(store, host, tmp_path):
    file = tmp_path / "m.npz"
    report = nz.pull(host.url, file, dry_run=True)
    assert (report.done, report.n_moved) == (False, 0)
    assert host.object_bytes == 0
    assert not file.exists()
    with pytest.raises(errors.LimitError, match="max-download"):
        nz.pull(host.url, file, max_download=report.n_needed - 1)
    assert nz.pull(host.url, file, max_download=report.n_needed).done


def test_two_pulls_to_one_file(store, host, tmp_path):
    from nearzip.store.pulling.download import Cache

    with Cache(tmp_path / ".m.npz.nearzip-pull").locked(), pytest.raises(errors.BusyError, match="under way"):
        nz.pull(host.url, tmp_path / "m.npz")
    assert nz.pull(host.url, tmp_path / "m.npz").done


def test_command(store, host, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["store", "pull", *arguments])
        return end.value.code, *capsys.readouterr()

    code, out, _ = run(f"{host.url}@1", "--to", "m.npz")
    assert code == 0
    assert "version        1, from no file" in out
    assert "at 40.83 Mbps" in out
    code, out, _ = run(host.url, "--to", "m.npz", "--json", "--bandwidth", "8")
    document = json.loads(out)
    assert (document["held"], document["version"], document["route"]) == (1, 6, [4, 5, 6])
    assert document["seconds_at_mbps"]["8.0"]["update"] == document["n_needed"] / 1e6
    assert run(host.url, "--to", "m.npz")[1].split() == [
        "file",
        "m.npz",
        "version",
        "6,",
        "already",
        "up",
        "to",
        "date",
    ]
    code, out, _ = run(f"{host.url}@0", "--to", "m.npz", "--dry-run")
    assert "would write" in out
    assert run(f"{host.url}@77", "--to", "m.npz")[0] == 10
    assert run(f"{host.url}@0", "--to", "m.npz", "--max-download", "1kB")[0] == 14


def test_a_client_needs_neither_pytorch_nor_a_web_library(store, host, tmp_path):
    code = (
        "import sys, nearzip\n"
        f"nearzip.pull({host.url!r}, {str(tmp_path / 'm.safetensors')!r})\n"
        "raise SystemExit(', '.join({'torch', 'aiohttp', 'requests', 's3fs'} & set(sys.modules)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_version_that_was_coded_anew_meanwhile(tmp_path):
    """What is remembered names an object that is gone: the way is looked for again."""
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Absolute(1e-3))
    for version in history(2):
        store.commit(version)
    manifest = tmp_path / "store" / "versions" / "00000001"
    (name,) = store._versions.get(1).objects
    with serving(tmp_path / "store") as host:
        old = manifest.read_bytes()
        wanted = store.checkout(1)
        fresh = nz.Store(tmp_path / "fresh", create=True)
        fresh.commit(updated(wanted, 3))
        fresh.commit(wanted, "the same, coded otherwise")
        assert fresh._versions.get(1).id == store._versions.get(1).id
        (tmp_path / "store" / "objects" / name).unlink()
        for path in (tmp_path / "fresh" / "objects").iterdir():
            path.rename(tmp_path / "store" / "objects" / path.name)
        served = iter([old])

        def first_the_old_one(handler):
            data = next(served, (tmp_path / "fresh" / "versions" / "00000001").read_bytes())
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        host.answers["versions/00000001"] = first_the_old_one
        (tmp_path / "store" / "versions" / "00000000").write_bytes(
            (tmp_path / "fresh" / "versions" / "00000000").read_bytes()
        )
        nz.pull(host.url, tmp_path / "m.npz", 1)
        assert equal(read(tmp_path / "m.npz"), wanted)
