"""Rounds by hand: updates with a residual file, their average, Algorithm 2; in Python and in the shell."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import nearzip as nz
from nearzip.cli.commands import cli
from nearzip.errors import Error, UsageError
from nearzip.federated import average_updates, compress_update, residual_accumulation
from nearzip.stages.prune import largest


def model(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(0, 0.05, (60, 50)).astype(dtype), "b": np.zeros(60, dtype), "n": np.array(3)}


def moved(base, seed, scale=1e-3):
    rng = np.random.default_rng(seed)
    return {
        name: value + 1 if value.dtype.kind == "i" else (value + rng.laplace(0, scale, value.shape)).astype(value.dtype)
        for name, value in base.items()
    }


# ---- Algorithm 2 -------------------------------------------------------------------------------------------------


def algorithm_2(start, targets, rounds, keep):
    """As printed, in plain NumPy, with raw residuals: every client pulls the model a tenth of the way to its target."""
    w = {name: value.copy() for name, value in start.items()}
    residuals = [{name: np.zeros_like(value) for name, value in start.items()} for _ in targets]
    for _ in range(rounds):
        messages = []
        for target, r in zip(targets, residuals, strict=True):
            message = {}
            for name in w:
                trained = w[name] + np.float32(0.1) * (target[name] - w[name])
                delta = (trained - w[name]) + r[name]
                kept = largest(delta.reshape(-1), keep).reshape(delta.shape)
                message[name] = np.where(kept, delta, np.float32(0))
                r[name] = delta - message[name]
            messages.append(message)
        for name in w:
            mean = sum(message[name].astype(np.float64) for message in messages) / len(messages)
            w[name] = (w[name].astype(np.float64) + mean).astype(np.float32)
    return w


def test_algorithm_2_as_printed():
    start = {name: value for name, value in model().items() if name != "n"}
    targets = [{name: value + np.float32(i + 1) * 1e-2 * moved(start, i)[name] for name, value in start.items()}
               for i in range(3)]  # fmt: skip
    wanted = algorithm_2(start, targets, 5, 0.05)

    def pulled(target):
        return lambda w: {name: w[name] + np.float32(0.1) * (target[name] - w[name]) for name in w}

    *_, last = residual_accumulation(
        start, [pulled(target) for target in targets], 5, options={"keep": 0.05}, residual="exact"
    )
    for name in start:
        assert np.abs(last.model[name] - wanted[name]).max() < 1e-7
    moved_by = max(np.abs(wanted[name] - start[name]).max() for name in start)
    assert moved_by > 1e-5


@pytest.mark.parametrize("residual", ["qd-compressor", "lc-checkpoint", "nearzip", None])
def test_compressed_residuals_are_small_and_go_stale(residual):
    start = {"w": np.zeros((300, 300), np.float32)}

    def train(w):
        return {"w": w["w"] + np.random.default_rng(1).laplace(0, 1e-3, (300, 300)).astype("f4")}

    found = list(residual_accumulation(start, [train] * 4, 4, residual=residual, per_round=2, seed=3))
    assert all(len(one.update_bytes) == 2 for one in found)
    kept = [size for one in found for size in one.residual_bytes.values()]
    assert max(kept) < 300 * 300 * 4 / 4
    assert (max(kept) == 0) == (residual is None)


def test_as_many_weights_as_clients():
    with pytest.raises(UsageError, match="as many weights"):
        next(residual_accumulation(model(), [lambda w: w], 1, weights=[1, 2]))


# ---- archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["nearzip", "topk", "stc", "skcompress", "deepreduce"])
def test_what_an_update_leaves_out_is_in_its_residual(method):
    base = model()
    new = moved(base, 1)
    update, left = compress_update(new, base, method=method, residual_method="exact")
    for name in ("w", "b"):
        assert np.abs(update.restored[name] + left.restored[name] - new[name]).max() < 1e-7
    again, left = compress_update(base, base, left.restored, method=method, residual_method="exact")
    assert np.abs(again.restored["w"] + left.restored["w"] - base["w"] - (new["w"] - update.restored["w"])).max() < 1e-7


def test_bfloat16_updates_below_a_unit_add_up():
    base = {"w": np.full((40, 40), 0.05).astype(nz.tensors.DTYPES["bfloat16"])}
    left, held = None, base
    for _ in range(30):
        shifted = {"w": held["w"]}
        residual = {"w": np.full((40, 40), 2e-5, np.float32) + (0 if left is None else left["w"])}
        update, kept = compress_update(shifted, held, residual, bound="lossless", residual_method="exact")
        held, left = update.restored, kept.restored
    arrived = held["w"].astype(np.float32).mean() - 0.05
    assert abs(arrived + left["w"].mean() - 30 * 2e-5) < 1e-4


def test_the_average_is_the_weighted_mean():
    base = model()
    news = [moved(base, seed) for seed in range(3)]
    updates = [nz.compress(new, base=base) for new in news]
    found = average_updates(updates, base, [1, 2, 5])
    for name in base:
        mean = sum(w * new[name].astype(np.float64) for w, new in zip([1, 2, 5], news, strict=True)) / 8
        mean = np.rint(mean) if base[name].dtype.kind == "i" else mean
        assert np.allclose(found.model[name], mean, rtol=0, atol=1e-8)
        assert found.model[name].dtype == base[name].dtype
    assert not found.rejected


def test_bad_updates_are_left_out_by_name():
    base = model()
    good = [nz.compress(moved(base, seed), base=base) for seed in range(4)]
    giant = {**base, "w": base["w"] + np.float32(1e30)}
    nan = {**base, "w": np.full_like(base["w"], np.nan)}
    bad = [
        good[0].to_bytes()[:-5],
        nz.compress(giant, base=base).to_bytes(),
        nz.compress(nan, base=base).to_bytes(),
        nz.compress(moved(base, 1), base=moved(base, 2)).to_bytes(),
        nz.compress({"w": base["w"]}, base=base).to_bytes(),
    ]
    found = average_updates([*good, *bad], base)
    assert list(found.rejected) == [4, 6, 7, 8, 5]
    clean = average_updates(good, base)
    assert all(np.array_equal(found.model[name], clean.model[name]) for name in base)
    with pytest.raises(Error, match="no update is left"):
        average_updates(bad[:1], base)


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [float("nan")], [1e308], [1.0, 2.0]])
def test_weights_are_checked(weights):
    base = model()
    with pytest.raises(UsageError, match="weight"):
        average_updates([nz.compress(base, base=base)], base, weights)


# ---- the shell ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("global.npz", **model())
    for seed in (1, 2):
        np.savez(f"client{seed}.npz", **moved(model(), seed))
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == code or (code is None and result.exit_code in (0, 1)), result.output
    return json.loads(result.stdout)


def test_two_rounds_by_hand(folder):
    base = "global.npz"
    for turn in range(2):
        for seed in (1, 2):
            arguments = [
                "--residual",
                f"r{seed}.nz",
                "-o",
                f"u{seed}-{turn}.nz",
                "--method",
                "stc",
                "--set",
                "keep=0.05",
            ]
            # In the second round nothing more is learned; what the first left out arrives.
            new = base if turn else f"client{seed}.npz"
            run("compress", new, "--base", base, *arguments, code=None)
            assert run("inspect", f"r{seed}.nz")["tensors"]
        found = run(
            "average", f"u1-{turn}.nz", f"u2-{turn}.nz", "--base", base, "--weights", "3,1", "-o", f"g{turn}.npz"
        )
        assert [row["weight"] for row in found["updates"]] == [3, 1]
        base = f"g{turn}.npz"
    start, mean = model()["w"], (3 * np.load("client1.npz")["w"] + np.load("client2.npz")["w"]) / 4
    arrived = np.load("g1.npz")["w"]
    assert np.linalg.norm(arrived - mean) < np.linalg.norm(np.load("g0.npz")["w"] - mean) < np.linalg.norm(start - mean)


def test_a_bad_update_is_named_and_left_out(folder):
    run("compress", "client1.npz", "--base", "global.npz", "-o", "good.nz")
    (folder / "bad.nz").write_bytes((folder / "good.nz").read_bytes()[:-9])
    found = run("average", "good.nz", "bad.nz", "--base", "global.npz", "-o", "next.npz", code=1)
    assert found["updates"][0]["left_out"] is None
    assert found["updates"][1]["left_out"]
    assert np.array_equal(np.load("next.npz")["w"], np.load("client1.npz")["w"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compress", "client1.npz", "-o", "u.nz", "--residual", "r.nz"], "--residual goes with --base"),
        (["compress", "client1.npz", "--base", "global.npz", "-o", "-", "--residual", "r.nz"], "takes files"),
        (["average", "u.nz", "--base", "global.npz", "--weights", "1,x", "-o", "n.npz"], "not a list of numbers"),
        (["average", "u.nz", "--base", "global.npz", "--weights", "1,2", "-o", "n.npz"], "need as many weights"),
        (["average", "none.nz", "--base", "global.npz", "-o", "n.npz"], "no update is left"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, says):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code in (2, 3, 10)
    assert says in result.output
    assert not (folder / "n.npz").exists()
    assert not (folder / "r.nz").exists()


def test_the_residual_is_no_other_file(folder):
    """A network taken for a residual would be added to the update, and then be lost."""
    update = ["--base", "global.npz", "-o", "u.nz", "--force"]
    run("compress", "client2.npz", "--base", "global.npz", "-o", "archive.nz")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for other, says in [
        ("client1.npz", "is the input"),
        ("global.npz", "is the input"),
        ("u.nz", "is given for two outputs"),
        ("client2.npz", "not a nearzip archive"),
        ("archive.nz", "holds no residual"),
    ]:
        result = CliRunner().invoke(cli, ["compress", "client1.npz", *update, "--residual", other])
        assert result.exit_code in (2, 12)
        assert says in result.output
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run("compress", "client1.npz", *update, "--residual", "r.nz")
    run("compress", "client1.npz", *update, "--residual", "r.nz")


def test_a_missing_update_is_left_out_and_one_given_twice_refused(folder):
    run("compress", "client1.npz", "--base", "global.npz", "-o", "good.nz")
    found = run("average", "good.nz", "none.nz", "--base", "global.npz", "-o", "next.npz", code=1)
    assert [row["bytes"] for row in found["updates"]] == [(folder / "good.nz").stat().st_size, None]
    result = CliRunner().invoke(cli, ["average", "good.nz", "./good.nz", "--base", "global.npz", "-o", "twice.npz"])
    assert result.exit_code == 2
    assert "is given 2 times" in result.output


@pytest.mark.parametrize("max_norm", [0.5, float("nan"), -1.0])
def test_the_norm_limit_is_checked(max_norm):
    base = model()
    with pytest.raises(UsageError, match="max_norm"):
        average_updates([nz.compress(base, base=base)], base, max_norm=max_norm)


@pytest.mark.parametrize("draw", ["of one size", "uniform", "laplace"])
def test_nothing_is_left_for_ever(draw):
    """One step of Adam moves every value by as much: an update of twice the root mean square would be empty."""
    rng, n = np.random.default_rng(0), 5000
    step = {
        "of one size": np.sign(rng.normal(size=n)),
        "uniform": rng.uniform(-1, 1, n),
        "laplace": rng.laplace(size=n),
    }
    held, left = {"w": np.zeros(n, np.float32)}, None
    for _ in range(30):
        update, kept = compress_update({"w": (held["w"] + step[draw]).astype(np.float32)}, held, left)
        held, left = dict(update.restored), dict(kept.restored)
    apart = np.sqrt(np.mean((30 * step[draw] - held["w"]) ** 2) / np.mean(step[draw] ** 2))
    assert apart < 20
