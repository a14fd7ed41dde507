"""A base whose tensors have other names or another precision than the new version's."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import nearzip as nz
from nearzip import errors
from nearzip.cli import cli
from nearzip.matching import converted
from nearzip.names import matching_names
from nearzip.tensors import DTYPES
from nearzip.testing.sealing import seal, unseal

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
READ_AGAIN = """
import sys, numpy as np, nearzip as nz
got = nz.decompress(sys.argv[1], base=sys.argv[2])
want = dict(nz.open(sys.argv[3]))
assert list(got) == list(want), (list(got), list(want))
for name in want:
    assert got[name].dtype == want[name].dtype and got[name].tobytes() == want[name].tobytes(), name
"""


def network(seed=0, n=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    tensors = {f"l{i}.weight": rng.normal(0, 0.05, (96, 64)).astype(dtype) for i in range(n)}
    return {**tensors, **{f"l{i}.bias": rng.normal(0, 0.05, 96).astype(dtype) for i in range(n)}}


def updated(base, seed=1):
    rng = np.random.default_rng(seed)
    return {k: (v.astype(np.float32) + rng.normal(0, 1e-4, v.shape)).astype(v.dtype) for k, v in base.items()}


def cast(tensors, dtype):
    with np.errstate(over="ignore"):
        return {name: array.astype(dtype) for name, array in tensors.items()}


def equal(one, other):
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and one[n].tobytes() == other[n].tobytes()
        for n in other
    )


def names_of(archive):
    return {name: base.name for name, base in archive.report.matches.items()}


# ---- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, "abs:1e-4", "upd:0.1"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("_orig_mod.", ""),
        ("module.", ""),
        ("module._orig_mod.", ""),
        ("", "_orig_mod."),
        ("module.", "_orig_mod."),
        ("encoder.", ""),
        ("", "encoder.model."),
    ],
)
def test_a_prefix_costs_nothing(ours, theirs, bound):
    base = network()
    new = updated(base)
    plain = nz.compress(new, base=base, bound=bound)
    renamed, given = {ours + k: v for k, v in new.items()}, {theirs + k: v for k, v in base.items()}
    archive = nz.compress(renamed, base=given, bound=bound)
    assert archive.nbytes < plain.nbytes + 300
    assert names_of(archive) == {ours + k: theirs + k for k in new}
    assert archive.base_id == nz.compress(given, method="gzip").id
    assert archive.report.index.gone == ()
    assert archive.report.without_base == {}
    restored = nz.decompress(archive.to_bytes(), base=given)
    assert equal(restored, archive.restored)
    assert equal({k.removeprefix(ours): v for k, v in restored.items()}, plain.restored)


def test_wrappers_within_names_match():
    base = {"model.layers.0.w": np.ones((40, 40), np.float32), "model.b": np.ones(40, np.float32)}
    new = {"model._orig_mod.layers.0._fsdp_wrapped_module.w": base["model.layers.0.w"], "model.b": base["model.b"]}
    assert names_of(nz.compress(new, base=base)) == {
        "model._orig_mod.layers.0._fsdp_wrapped_module.w": "model.layers.0.w"
    }


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (["student.w", "teacher.w"], ["w"]),
        (["w", "x"], ["y", "z"]),
        (["module.w", "_orig_mod.w"], ["w"]),
        (["a.w", "b.x", "c.y"], ["w", "x", "y"]),
        (["a.w"], []),
    ],
)
def test_what_is_not_certain_does_not_match(new, old):
    assert matching_names(new, old, lambda one, other: True) == {}


def test_a_prefix_matches_only_if_all_shapes_do():
    base = network()
    new = {"encoder." + k: v for k, v in updated(base).items()}
    new["encoder.l0.bias"] = np.zeros(7, np.float32)
    assert names_of(nz.compress(new, base=base)) == {}


def test_renames_say_what_cannot_be_guessed(tmp_path):
    base = network()
    new = {k.replace("l0.", "first.").replace("l1.", "second."): v for k, v in updated(base).items()}
    archive = nz.compress(new, base=base, rename={"l0.": "first.", "l1.bias": "second.bias"})
    assert names_of(archive) == {"first.weight": "l0.weight", "first.bias": "l0.bias", "second.bias": "l1.bias"}
    assert equal(nz.decompress(archive.to_bytes(), base=base), new)
    for name, tensors in (("old", base), ("new", new)):
        nz.decompress_file(nz.compress(tensors), tmp_path / f"{name}.safetensors")
    out = tmp_path / "update.nz"
    arguments = [
        "compress",
        str(tmp_path / "new.safetensors"),
        "--base",
        str(tmp_path / "old.safetensors"),
        "-o",
        str(out),
    ]
    found = CliRunner().invoke(cli, [*arguments, "--rename", "l0.=first.", "--rename", "l1.=second.", "--json"])
    assert found.exit_code == 0
    document = json.loads(found.stdout)
    assert document["matches"]["second.bias"] == {"name": "l1.bias", "dtype": "float32", "shape": [96]}
    assert document["without_base"] == {}
    assert equal(nz.decompress(out, base=tmp_path / "old.safetensors"), new)
    said = CliRunner().invoke(cli, [*arguments, "--force", "--rename", "l0.=first."]).output
    assert "'first.weight' with 'l0.weight' and 1 more" in " ".join(said.split())
    assert CliRunner().invoke(cli, [*arguments, "--force", "--rename", "l0"]).exit_code == 2


@pytest.mark.parametrize("rename", [{"nothing": "x"}, {"l0.": "nothing."}, {"l0.": "l1."}, {"l0.": 3}, "l0=l1"])
def test_renames_that_fit_nothing_are_refused(rename):
    base = network()
    with pytest.raises(nz.errors.UsageError, match="rename"):
        nz.compress(updated(base), base=base, rename=rename)


def test_renames_need_a_base():
    with pytest.raises(nz.errors.UsageError, match="give a base"):
        nz.compress(network(), rename={"a": "b"})


# ---- precisions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_a_cast_of_the_base_takes_next_to_nothing(base_dtype, new_dtype):
    base = cast(network(), DTYPES[base_dtype])
    new = {name: converted(array, new_dtype) for name, array in base.items()}
    archive = nz.compress(new, base=base)
    assert archive.nbytes < 1500
    assert equal(nz.decompress(archive.to_bytes(), base=base), new)
    assert archive.base_id == nz.compress(base).id


@pytest.mark.parametrize("bound", [None, "abs:1e-3", "upd:0.1", "rel:1e-3", "pwrel:0.01"])
@pytest.mark.parametrize(
    ("base_dtype", "new_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_updates_of_another_precision(base_dtype, new_dtype, bound):
    base = cast(network(), DTYPES[base_dtype])
    rng = np.random.default_rng(3)
    moved = {k: v.astype(np.float32) + rng.normal(0, 2e-3, v.shape).astype(np.float32) for k, v in base.items()}
    new = cast(moved, DTYPES[new_dtype])
    alone = nz.compress(new, bound=None if bound == "upd:0.1" else bound)
    archive = nz.compress(new, base=base, bound=bound)
    assert archive.nbytes < alone.nbytes
    restored = nz.decompress(archive.to_bytes(), base=base)
    assert equal(restored, archive.restored)
    if bound is None:
        assert equal(restored, new)
    if bound == "abs:1e-3":
        assert max(np.abs(restored[k].astype("f8") - new[k].astype("f8")).max() for k in new) <= 1e-3
    if bound == "upd:0.1":
        assert archive.update_kept.share > 0.9


def test_conversion_rounds_to_nearest_even_and_knows_one_nan():
    halves = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 2**-134, 3e38, -3.4e38, np.inf])
    assert converted(halves, "bfloat16").tobytes() == halves.astype(ml_dtypes.bfloat16).tobytes()
    odd = np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32)
    for dtype in ("bfloat16", "float16", "float64"):
        assert converted(odd, dtype).tobytes() == np.full(2, np.nan, DTYPES[dtype]).tobytes()
    assert converted(np.float32([1e9, -1e9]), "float8_e4m3fn").tobytes() == b"\x7f\x7f"


def test_a_version_that_torch_cast_takes_next_to_nothing():
    torch = pytest.importorskip("torch")
    old = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 0.02}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert nz.compress({"w": old["w"].to(dtype)}, base=old).nbytes < 1000


def test_other_kinds_stay_apart():
    base = {"w": np.arange(4096, dtype=np.float32), "b": np.arange(4096, dtype=np.int32)}
    new = {"w": np.arange(4096, dtype=np.int32), "b": np.arange(4096, dtype=np.float32)}
    archive = nz.compress(new, base=base)
    assert names_of(archive) == {}
    assert archive.report.without_base["w"] == "was float32 [4096], is int32 [4096]"


# ---- rows ------------------------------------------------------------------------------------------------------


def vocabulary(rows, seed=0):
    return np.random.default_rng(seed).normal(0, 0.05, (rows, 64)).astype(np.float32)


@pytest.mark.parametrize("bound", [None, "abs:1e-4", "upd:0.1"])
@pytest.mark.parametrize("rows", [1000, 1008, 990, 1])
def test_rows_added_and_removed(rows, bound):
    base = {"embed": vocabulary(1000), "bias": vocabulary(1000)[:, 0].copy()}
    new = {"embed": vocabulary(1100, 1)[:rows], "bias": vocabulary(1100, 1)[:rows, 0].copy()}
    moved = updated(base, 5)
    for name, array in new.items():
        array[:1000] = moved[name][:rows]
    archive = nz.compress(new, base=base, bound=bound)
    restored = nz.decompress(archive.to_bytes(), base=base)
    assert equal(restored, archive.restored)
    assert archive.report.without_base == {}
    assert archive.nbytes < nz.compress(new, bound=None if bound == "upd:0.1" else bound).nbytes + 64
    if bound is None:
        assert equal(restored, new)
    if bound == "abs:1e-4":
        assert max(np.abs(restored[k] - new[k]).max() for k in new) <= 1e-4
    wrong = {**base, "embed": base["embed"][:-1]}
    with pytest.raises(nz.errors.WrongBaseError, match="embed"):
        nz.decompress(archive.to_bytes(), base=wrong)


def test_a_grown_vocabulary_costs_its_new_rows():
    base = {"embed": vocabulary(4000)}
    new = {"embed": np.concatenate([updated(base)["embed"], vocabulary(8, 2)])}
    same = nz.compress({"embed": new["embed"][:4000]}, base=base).nbytes
    assert nz.compress(new, base=base).nbytes < same + 8 * 64 * 4 + 500


def test_bounds_of_the_update_do_not_count_new_rows():
    base = {"embed": vocabulary(1000)}
    new = {"embed": np.concatenate([updated(base)["embed"], 100 * vocabulary(8, 2)])}
    archive = nz.compress(new, base=base, bound="upd:0.1")
    plain = nz.compress({"embed": new["embed"][:1000]}, base=base, bound="upd:0.1")
    resolved = archive.report.index.bound["resolved"]
    assert 0.9 * plain.report.index.bound["resolved"] < resolved <= plain.report.index.bound["resolved"]
    assert archive.update_kept.share == pytest.approx(plain.update_kept.share, abs=0.01)
    with pytest.warns(nz.errors.UpdateLostWarning):
        nz.compress(new, base=base, bound="abs:0.1")


def test_rows_and_names_and_precisions_at_once():
    base = {"embed": vocabulary(1000), "head.weight": vocabulary(1000, 4)}
    new = {f"_orig_mod.{k}": np.concatenate([v, v[:8]]).astype(ml_dtypes.bfloat16) for k, v in base.items()}
    archive = nz.compress(new, base=base)
    assert archive.nbytes < 8 * 64 * 4 + 1500
    assert equal(nz.decompress(archive.to_bytes(), base=base), new)


# ---- both, and what readers do ---------------------------------------------------------------------------------


def test_names_and_precisions_from_bytes_alone(tmp_path):
    base = network(n=2)
    new = {f"_orig_mod.{k}": v for k, v in cast(updated(base), ml_dtypes.bfloat16).items()}
    new["tied"] = new["_orig_mod.l0.weight"]
    nz.decompress_file(nz.compress(base), tmp_path / "base.safetensors")
    nz.decompress_file(nz.compress(new), tmp_path / "new.safetensors")
    report = nz.compress_file(
        tmp_path / "new.safetensors",
        tmp_path / "u.nz",
        tmp_path / "base.safetensors",
        restored=tmp_path / "r.safetensors",
    )
    assert len(report.write.matches) == 4
    nz.compress(new).save(tmp_path / "want.nz")
    command = [sys.executable, "-c", READ_AGAIN, str(tmp_path / "u.nz"), str(tmp_path / "base.safetensors")]
    subprocess.run([*command, str(tmp_path / "want.nz")], check=True)
    assert (tmp_path / "r.safetensors").stat().st_size > 0


def test_archives_name_matches_only_where_there_are_some():
    base = network()
    assert "matches" not in unseal(nz.compress(updated(base), base=base).to_bytes())[0]
    assert "matches" not in unseal(nz.compress(base).to_bytes())[0]
    assert "matches" in unseal(nz.compress(cast(base, np.float16), base=base).to_bytes())[0]


def test_a_wrong_base_is_refused():
    base = network()
    archive = nz.compress({f"module.{k}": v for k, v in cast(updated(base), np.float16).items()}, base=base).to_bytes()
    others = {
        "values": updated(base, 9),
        "dtype": cast(base, np.float16),
        "names": {f"module.{k}": v for k, v in base.items()},
        "both": {f"module.{k}": v for k, v in cast(base, np.float16).items()},
        "nothing": {},
        "shape": {k: v.reshape(-1) for k, v in base.items()},
    }
    for other in (*others.values(), None):
        with pytest.raises(nz.errors.WrongBaseError):
            nz.decompress(archive, base=other)
    with nz.open(archive, base=base) as reader:
        assert reader.index.matches["module.l0.bias"].name == "l0.bias"
        assert not reader.damage()


def test_damage_is_named():
    base = network()
    data = bytearray(nz.compress({f"module.{k}": v for k, v in updated(base).items()}, base=base).to_bytes())
    data[40] ^= 1
    with pytest.raises(nz.errors.CorruptError, match="damaged here"):
        nz.decompress(bytes(data), base=base)


def test_a_base_of_no_use_costs_nothing():
    base = network()
    rng = np.random.default_rng(5)
    new = {f"module.{k}": rng.normal(0, 0.05, v.shape).astype(np.float16) for k, v in base.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nz.compress(new, base=base).nbytes <= nz.compress(new).nbytes + 64


@pytest.mark.parametrize("bound", ["lossless", "abs:1e-4", "upd:0.1"])
def test_versions_of_a_store(tmp_path, bound):
    base = network(n=2)
    versions = [base]
    versions.append({f"_orig_mod.{k}": v for k, v in updated(base, 2).items()})
    versions.append(cast(updated(versions[-1], 3), ml_dtypes.bfloat16))
    versions.append({k.removeprefix("_orig_mod."): v.astype(np.float32) for k, v in versions[-1].items()})
    sizes = []
    with nz.Store(tmp_path / "store", create=True, bound=bound) as store:
        for version in versions:
            before = sum(p.stat().st_size for p in (tmp_path / "store").rglob("*") if p.is_file())
            store.commit(version, warn=False)
            sizes.append(sum(p.stat().st_size for p in (tmp_path / "store").rglob("*") if p.is_file()) - before)
    with nz.Store(tmp_path / "store") as store:
        for number, version in enumerate(versions):
            got = store.checkout(number)
            assert [(k, v.dtype, v.shape) for k, v in got.items()] == [
                (k, v.dtype, v.shape) for k, v in version.items()
            ]
            if bound == "lossless":
                assert equal(got, version)
        one = store.checkout(2, names=["_orig_mod.l0.bias"])
        assert one["_orig_mod.l0.bias"].tobytes() == store.checkout(2)["_orig_mod.l0.bias"].tobytes()
        assert not store.verify().damages
    assert max(sizes[2:]) < sizes[0] / 1.5


MATCHES = [
    {"0": "w"},
    {"0": ["w", "float32"]},
    {"0": ["w", "float32", [40, 41]]},
    {"0": ["w", "int32", [40, 40]]},
    {"0": ["module.w", "float32", [40, 40]]},
    {"0": ["w", "float32", [0, 40]]},
    {"0": ["w", "float32", [-1, 40]]},
    {"0": ["w", "float999", [40, 40]]},
    {"0": ["w", 3, [40, 40]]},
    {"1": ["w", "float32", [40, 40]]},
    {"00": ["w", "float32", [40, 40]]},
    {"-1": ["w", "float32", [40, 40]]},
    {"9" * 5000: ["w", "float32", [40, 40]]},
    [],
    None,
]


@pytest.mark.parametrize("matches", MATCHES)
def test_hostile_matches_are_named_errors(matches):
    base = {"w": vocabulary(40)[:, :40].copy()}
    document, blocks = unseal(nz.compress({"module.w": base["w"]}, base=base).to_bytes())
    assert document["matches"] == {"0": ["w", "float32", [40, 40]]}
    assert equal(nz.decompress(seal(document, blocks), base=base), {"module.w": base["w"]})
    with pytest.raises((nz.errors.CorruptError, nz.errors.NewerFormatError)):
        nz.decompress(seal({**document, "matches": matches}, blocks), base=base)


def test_added_rows_count_as_output():
    """A small base does not make room for any number of rows."""
    base = {"w": np.zeros((1, 1024), np.float32)}
    document, blocks = unseal(nz.compress({"w": np.zeros((2, 1024), np.float32)}, base=base).to_bytes())
    document["matches"] = {"0": ["w", "float32", [1, 1024]]}
    document["tensors"][0][2] = [1 << 20, 1024]
    [segment] = document["segments"]
    segment["block_bytes"] = 64 << 20
    pipeline, _, digest = segment["blocks"][0]
    segment["blocks"] += [[pipeline, 0, digest]] * 63
    with pytest.raises(nz.errors.LimitError):
        nz.open(seal(document, blocks), base=base)


def test_a_store_is_told_of_renamed_tensors(tmp_path):
    rng = np.random.default_rng(0)
    old = {f"encoder.{i}.w": rng.normal(size=(200, 100)).astype(np.float32) for i in range(3)} | {"old.b": np.ones(9)}
    new = {name.replace("encoder.", "blocks."): w + np.float32(1e-4) for name, w in old.items() if name != "old.b"}
    new["new.b"] = np.ones(9)
    for rename in (None, {"encoder.": "blocks.", "old.b": "new.b"}):
        store = nz.Store(tmp_path / f"store{bool(rename)}", create=True)
        store.commit(old)
        store.commit(new, rename=rename)
        assert all(np.array_equal(store.checkout()[name], w) for name, w in new.items())
        sizes = [version.n_stored for version in store.log()]
        assert (sizes[1] < 0.8 * sizes[0]) == bool(rename)
        assert store.verify().ok
    with pytest.raises(errors.UsageError, match="no tensor of the base that begins with 'x'"):
        store.commit(new, rename={"x": "y"})


def test_the_command_line_tells_a_store_of_renamed_tensors(tmp_path):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 300, 100)).astype(np.float32)
    np.savez(tmp_path / "old.npz", a=one, c=two)
    np.savez(tmp_path / "new.npz", b=one + np.float32(1e-4), d=two)
    url = str(tmp_path / "store")
    runner = CliRunner()
    for arguments in (("init", url), ("commit", url, str(tmp_path / "old.npz"))):
        assert runner.invoke(cli, ["store", *arguments]).exit_code == 0
    arguments = ["store", "commit", url, str(tmp_path / "new.npz"), "--rename", "a=b", "--rename", "c=d", "--json"]
    done = runner.invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    sizes = [version.n_stored for version in nz.Store(url).log()]
    assert sizes[1] < 0.6 * sizes[0]
