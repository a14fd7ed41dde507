"""Loaders, networks, training and the cache of traces behind the measurements, on made-up data."""

from __future__ import annotations

import doctest
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from idx import write_mnist

torch = pytest.importorskip("torch", reason="the experiments need PyTorch")

from experiments.lab import data, sampling, schedules, trace_sets, traces, train, training  # noqa: E402
from experiments.lab.networks import NETWORKS, data_of  # noqa: E402

rng = np.random.default_rng(3)

#: What the networks' papers, or those who measured on them, count.
PARAMETERS = {
    "lenet-300-100": 266_610,
    "lenet-5": 431_080,
    "vgg-small": 801_578,
    "strided-small": 357_034,
    "strided-plain": 356_810,
    "transformer-small": 360_480,
    "resnet-20": 269_722,
    "mobilenet-small": 136_778,
    "transformer": 1_829_376,
    "alexnet": 23_272_266,
    "vgg-16": 14_728_266,
    "vgg-19": 20_040_522,
    "resnet-18": 11_173_962,
    "resnet-34": 21_282_122,
    "resnet-56": 853_018,
    "resnet-101": 42_512_970,
    "googlenet": 6_166_250,
    "mobilenet-v2": 2_296_922,
    "shufflenet-v2": 1_263_854,
    "shufflenet-v2-2x": 5_338_026,
    "efficientnet-b0": 3_598_598,
}
INPUTS = {"mnist": (2, 1, 28, 28), "cifar-10": (2, 3, 32, 32), "tinyshakespeare": (2, 16)}

needs_data = pytest.mark.skipif(not os.environ.get("NEARZIP_DATA"), reason="needs the data sets: set NEARZIP_DATA")


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder with noise in the shape of MNIST."""
    return write_mnist(tmp_path / "data", rng, 40, 10)


def _write_cifar(folder: Path) -> np.ndarray:
    """Two records in each official file; all of them."""
    folder.mkdir(parents=True)
    records = rng.integers(0, 256, (6, 2, 3073)).astype(np.uint8)
    records[:, :, 0] %= 10
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, batch in zip(names, records, strict=True):
        batch.tofile(folder / name)
    return records


def _images(name: str, shape: tuple[int, ...], n: int = 24) -> data.Dataset:
    def split(n: int) -> data.Split:
        inputs = torch.from_numpy(rng.standard_normal((n, *shape)).astype(np.float32))
        return data.Split(inputs, torch.arange(n) % 10)

    return data.Dataset(name, split(n), split(4), split(8))


def _text(n: int = 400) -> data.Dataset:
    tokens = torch.from_numpy(rng.integers(0, 65, n))
    split = data.Split(tokens[:-1], tokens[1:])
    return data.Dataset("tinyshakespeare", split, split[:60], split[:60])


# ---- data


def test_mnist_is_read_and_split(mnist: Path):
    loaded = data.load("mnist", mnist, n_validation=5)
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [35, 5, 10]
    assert loaded.train.inputs.shape == (35, 1, 28, 28)
    assert loaded.train.inputs.dtype == torch.float32
    assert loaded.validation.targets.tolist() == [5, 6, 7, 8, 9]
    pixels = data.read_idx(mnist / "MNIST/raw/t10k-images-idx3-ubyte.gz")
    expected = (pixels[3, 4, 5] / 255 - 0.1307) / 0.3081
    assert loaded.test.inputs[3, 0, 4, 5].item() == pytest.approx(expected, rel=1e-5)


def test_the_folder_may_come_from_the_environment(mnist: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEARZIP_DATA", str(mnist))
    assert len(data.load("mnist", n_validation=0).train) == 40


def test_cifar_is_read_from_the_official_layout(tmp_path: Path):
    records = _write_cifar(tmp_path / "cifar-10-batches-bin")
    loaded = data.load("cifar-10", tmp_path, n_validation=2)
    assert loaded.train.inputs.shape == (8, 3, 32, 32)
    assert loaded.test.targets.tolist() == records[5, :, 0].tolist()
    blue = (records[5, 1, 1 + 2048 + 32 * 7 + 3] / 255 - 0.4465) / 0.2616
    assert loaded.test.inputs[1, 2, 7, 3].item() == pytest.approx(blue, rel=1e-5)


def test_packed_cifar_is_unpacked_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEARZIP_CACHE", str(tmp_path / "cache"))
    _write_cifar(tmp_path / "made" / "cifar-10-batches-bin")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "cifar-10.xz").touch()
    with pytest.raises(data.DataError, match=r"unpack it .* unpack_cifar10.py is not there"):
        data.load("cifar-10", packed, 0)
    copy = f"import shutil, sys; shutil.copytree({str(tmp_path / 'made')!r}, sys.argv[1], dirs_exist_ok=True)"
    (packed / "unpack_cifar10.py").write_text(copy)
    with pytest.raises(data.DataError, match="not the official file's"):
        data.load("cifar-10", packed, 0)
    monkeypatch.setattr(data, "CHECKSUMS", {})
    assert len(data.load("cifar-10", packed, 0).train) == 10
    (packed / "unpack_cifar10.py").write_text("raise SystemExit('again?')")
    assert len(data.load("cifar-10", packed, 0).test) == 2


def test_text_becomes_sorted_characters(tmp_path: Path):
    (tmp_path / "input.txt").write_text("cabbage " * 50)
    loaded = data.load("tinyshakespeare", tmp_path)
    assert loaded.is_text
    assert loaded.train.inputs[:8].tolist() == [3, 1, 2, 2, 1, 5, 4, 0]
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [359, 19, 19]
    assert torch.equal(loaded.train.inputs[1:], loaded.train.targets[:-1])


@pytest.mark.parametrize("name", ["mnist", "cifar-10", "tinyshakespeare"])
def test_missing_data_are_named(tmp_path: Path, name: str):
    with pytest.raises(data.DataError, match="--data or NEARZIP_DATA"):
        data.load(name, tmp_path)


class _Pooch:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def retrieve(self, url: str, known_hash: str, **_: object) -> None:
        self.asked.append((url, known_hash))


def test_without_a_folder_the_official_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pooch = _Pooch()
    monkeypatch.delenv("NEARZIP_DATA", raising=False)
    monkeypatch.setenv("NEARZIP_CACHE", str(tmp_path))
    monkeypatch.setattr(data.importlib, "import_module", lambda name: pooch)
    with pytest.raises(data.DataError, match="no MNIST"):
        data.load("mnist")
    assert len(pooch.asked) == 4
    assert all(known_hash.startswith("md5:") for _, known_hash in pooch.asked)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(data.importlib, "import_module", missing)
    with pytest.raises(data.DataError, match="or install pooch"):
        data.load("mnist")


def test_damaged_idx_is_named(tmp_path: Path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])))
    with pytest.raises(data.DataError, match="2 values where the header says 9"):
        data.read_idx(path)
    path.write_bytes(gzip.compress(b"text"))
    with pytest.raises(data.DataError, match="not an IDX file"):
        data.read_idx(path)


def test_more_cannot_be_held_out_than_there_is(mnist: Path):
    with pytest.raises(data.DataError, match="cannot hold out 40 of 40"):
        data.load("mnist", mnist, n_validation=40)


# ---- networks


def test_every_network_is_counted():
    assert set(PARAMETERS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_shape(name: str):
    shape = INPUTS[data_of(name)]
    with torch.device("meta"):
        network = NETWORKS[name]()
        logits = network(torch.zeros(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32))
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    assert logits.shape == ((2, 16, 65) if len(shape) == 2 else (2, 10))


def test_stochastic_depth_drops_whole_samples_in_training_only():
    from experiments.lab.networks.inverted import _DropSample

    torch.manual_seed(0)
    drop, x = _DropSample(0.5), torch.ones(64, 2, 3, 3)
    kept = drop(x).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.min(1).values, kept.max(1).values)
    assert torch.equal(drop.eval()(x), x)


# ---- batches


def test_images_are_shifted_and_mirrored():
    image = torch.arange(1.0, 1 + 32 * 32).reshape(1, 1, 32, 32).expand(200, 3, 32, 32)
    moved = sampling.augment(image, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    padded = torch.nn.functional.pad(image[:1], [4] * 4)[0, 0]
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    for view in moved[:20, 0]:
        assert any(torch.equal(view, w) or torch.equal(view, w.flip(1)) for w in windows)
    assert len({tuple(v.flatten().tolist()) for v in moved[:, 0]}) > 100


def test_an_epoch_sees_every_image_once():
    dataset = _images("mnist", (1, 2, 2))
    batches = sampling.training_batches(dataset, 8, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches)[0] for _ in range(sampling.steps_per_epoch(dataset, 8))])
    assert torch.equal(seen.flatten(1).sort(0).values, dataset.train.inputs.flatten(1).sort(0).values)


def test_text_targets_are_the_next_characters():
    dataset = _text()
    inputs, targets = next(sampling.training_batches(dataset, 3, torch.Generator().manual_seed(0)))
    assert inputs.shape == targets.shape == (3, 128)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_evaluation_counts_per_prediction():
    dataset = _images("mnist", (1, 28, 28))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.eye(10)[3]
    found = sampling.evaluate(network, dataset.test)
    assert found["accuracy"] == 1 / 8
    assert network.training


# ---- training


def test_doctests_of_the_rules():
    assert doctest.testmod(schedules).failed == 0


def test_schedules():
    assert [schedules.SCHEDULES["step"](x) for x in (0, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
    assert [schedules.SCHEDULES["cosine"](x) for x in (0, 0.5)] == pytest.approx([1, 0.5])


CASES = {
    "lenet-300-100": lambda: _images("mnist", (1, 28, 28)),
    "mobilenet-small": lambda: _images("cifar-10", (3, 32, 32)),
    "transformer": _text,
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "_TEXT_TESTS", (1, 2))
    dataset = CASES[name]()
    settings = training.preset(name, steps=3, every=2, batch=4, state=True)
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(1)  # what was drawn before does not matter
        training.train(replace(settings, seed=seed), tmp_path / run, dataset)
    for file in ("00002.safetensors", "00003.safetensors", "state/00003.safetensors"):
        a, b, c = ((tmp_path / run / file).read_bytes() for run in "abc")
        assert a == b
        assert a != c


def test_a_version_loads_and_scores_as_written(tmp_path: Path):
    from safetensors.torch import load_file

    dataset = _images("cifar-10", (3, 32, 32))
    settings = training.preset("mobilenet-small", epochs=2, batch=8, state=True)
    document = training.train(settings, tmp_path, dataset)
    assert json.loads((tmp_path / "trace.json").read_text()) == document
    row = document["versions"][1]
    assert (row["epoch"], row["step"], row["file"]) == (2, 6, "002.safetensors")
    network = NETWORKS["mobilenet-small"]()
    network.load_state_dict(load_file(tmp_path / row["file"]))
    assert sampling.evaluate(network, dataset.test) == pytest.approx(row["test"])
    state = load_file(tmp_path / "state" / row["file"])
    assert set(state) == {f"{n}.momentum_buffer" for n, _ in network.named_parameters()}


def test_only_what_the_rule_says_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scores = iter([0.2, 0.9, 0.4, 0.9, 0.5, 0.9])  # test and validation in turn
    monkeypatch.setattr(training, "evaluate", lambda *_: {"loss": 1.0, "accuracy": next(scores)})
    settings = training.preset("lenet-300-100", epochs=3, batch=8, rule="delta-dnn")
    document = training.train(settings, tmp_path, _images("mnist", (1, 28, 28)))
    assert [row["test"]["accuracy"] for row in document["versions"]] == [0.2, 0.4, 0.5]


def test_versions_that_do_not_improve_are_only_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "evaluate", lambda *_: {"loss": 1.0, "accuracy": 0.5})
    settings = training.preset("lenet-300-100", epochs=21, batch=24, rule="delta-dnn")
    document = training.train(settings, tmp_path, _images("mnist", (1, 28, 28)))
    assert [row["epoch"] for row in document["versions"]] == [1, 21]
    assert len(document["not_saved"]) == 19
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {"001.safetensors", "021.safetensors"}


# ---- cached sets


def test_cached_traces_are_built_once(tmp_path: Path, mnist: Path, monkeypatch: pytest.MonkeyPatch):
    settings = training.preset("lenet-300-100", epochs=2, batch=10, n_validation=10)
    monkeypatch.setitem(trace_sets.SETS, "quick", (settings,))
    folder = tmp_path / "quick" / "lenet-300-100"

    def build(**changes: object) -> bool:
        became = trace_sets.build_set("quick", tmp_path, str(mnist), **changes)
        return became["lenet-300-100"] != "was there"

    assert build()
    assert not build()
    assert [p.name for p in trace_sets.version_files(folder)] == ["001.safetensors", "002.safetensors"]
    (folder / "002.safetensors").unlink()
    assert build(), "a version was missing"
    assert build(epochs=1), "the settings had changed"
    assert [p.name for p in folder.glob("*.safetensors")] == ["001.safetensors"]
    document = json.loads((folder / "trace.json").read_text()) | {"complete": False}
    (folder / "trace.json").write_text(json.dumps(document))
    assert build(epochs=1), "the training had been cut short"
    assert trace_sets.build_set("quick", tmp_path, None, only=["lenet-5"]) == {}


def test_shared_traces_are_told_from_others(tmp_path: Path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "00250.safetensors").write_bytes(b"another training")
    found = traces.differing(tmp_path)
    assert len(found) == len(traces.CHECKSUMS) == 8
    assert [line for line in found if not line.endswith("missing")] == [
        f"{tmp_path / 'transformer' / '00250.safetensors'}: another training than that of the published figures"
    ]
    with pytest.raises(SystemExit, match=r"vgg-small.*missing"):
        traces.main([str(tmp_path)])


def test_presets_train_the_shared_traces_again():
    assert training.preset("transformer").every == 50
    for older, newer, _ in traces.PAIRS.values():
        network, _, at = newer.partition("/")
        settings = training.preset(network)
        assert int(at) <= (settings.steps or settings.epochs)
        assert {older, newer} <= set(traces.CHECKSUMS)


def test_sets_name_networks_with_sensible_settings():
    for members in trace_sets.SETS.values():
        assert {s.network for s in members} <= set(NETWORKS)
        assert len({s.network for s in members}) == len(members)
        assert all(s.rule in schedules.RULES and s.schedule in schedules.SCHEDULES for s in members)


def test_the_train_command(tmp_path: Path, mnist: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "trace"
    common = ["lenet-5", "--data", str(mnist), "--validation", "0", "--batch", "10", "--output", str(output)]
    train.main([*common, "--steps", "2", "--every", "1", "--optimizer", "adamw", "--lr", "1e-3", "--state"])
    assert {p.name for p in output.glob("*.safetensors")} == {"00001.safetensors", "00002.safetensors"}
    assert "test loss" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds another trace"):
        train.main([*common, "--epochs", "1"])
    train.main([*common, "--epochs", "1", "--force"])
    assert {p.name for p in output.rglob("*.safetensors")} == {"001.safetensors"}
    train.main([*common, "--epochs", "1"])
    assert "was there" in capsys.readouterr().out


def test_the_train_command_names_missing_data(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"train: .*no MNIST"):
        train.main(["lenet-5", "--data", str(tmp_path), "--output", str(tmp_path / "trace")])


# ---- with the real data


@needs_data
@pytest.mark.parametrize(
    ("name", "counts"), [("mnist", (55_000, 5000, 10_000)), ("tinyshakespeare", (1_003_853, 55_769))]
)
def test_official_data(name: str, counts: tuple[int, ...]):
    loaded = data.load(name)
    found = tuple(len(s) for s in (loaded.train, loaded.validation, loaded.test))
    assert found[: len(counts)] == counts


@needs_data
@pytest.mark.parametrize("pair", ["transformer late", "vgg-small late"])
def test_shared_traces_load_into_our_networks(pair: str):
    where = traces.folder(None)
    if where is None:
        pytest.skip(f"{pair}: needs the shared traces beside NEARZIP_DATA")
    older, _ = traces.pair(where, pair)
    network = NETWORKS[pair.rpartition(" ")[0]]()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in older.items()})


@needs_data
def test_the_shared_transformer_scores_as_its_notes_say():
    where = traces.folder(None)
    if where is None:
        pytest.skip("transformer: needs the shared traces beside NEARZIP_DATA")
    older, _ = traces.pair(where, "transformer late")
    network = NETWORKS["transformer"]()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in older.items()})
    text = data.load("tinyshakespeare")
    held_out = data.Split(
        torch.cat([text.validation.inputs, text.test.inputs]), torch.cat([text.validation.targets, text.test.targets])
    )
    found = sampling.evaluate(network, held_out)
    assert found["loss"] == pytest.approx(1.815, abs=0.02)
    assert found["accuracy"] == pytest.approx(0.460, abs=0.01)


def test_gates_count_plans_on_data_never_seen():
    from experiments.claims.accuracy import gates

    [row] = gates.rows(1, 1)
    assert set(row["plans"]) == {"None", "0.95"}
    assert row["plans"]["None"]["loss"] <= gates.MAX_LOSS
    assert row["plans"]["None"]["bytes"] <= row["plans"]["0.95"]["bytes"]
    found = gates.summary([row, row])
    assert {name: each["plans"] for name, each in found.items()} == {"None": 2, "0.95": 2}
