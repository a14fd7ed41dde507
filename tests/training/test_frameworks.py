"""Real Lightning, real transformers: training goes on from a store as it would have gone on."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import nearzip as nz
from nearzip import errors

pytestmark = pytest.mark.filterwarnings("ignore")

# ---- Lightning -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning")


def lightning_training(lightning, folder, io, epochs, callbacks=(), **named):
    from torch.utils.data import DataLoader, TensorDataset

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, plugins=[io], callbacks=list(callbacks), accelerator="cpu",
        devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Classifier()
    trainer.fit(model, data, **named)
    return trainer, model


def checkpointing(folder, **named):
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_on_train_epoch_end=True, **named)


@pytest.mark.parametrize("behind", [False, True])
def test_lightning_goes_on_bit_for_bit(lightning, tmp_path, behind):
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    from nearzip.torch.lightning import NearzipCheckpointIO

    def io():
        own = NearzipCheckpointIO(tmp_path / "store")
        return AsyncCheckpointIO(own) if behind else own

    lightning_training(lightning, tmp_path, io(), 2, [checkpointing(tmp_path, save_top_k=-1)])
    pointer = tmp_path / "checkpoints" / "epoch=1.ckpt"
    assert pointer.stat().st_size < 500
    _, resumed = lightning_training(lightning, tmp_path, io(), 4, ckpt_path=pointer, weights_only=False)
    _, straight = lightning_training(lightning, tmp_path, io(), 4)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_lightning_removes_pointers_and_keeps_versions(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    io = NearzipCheckpointIO(tmp_path / "store", bound=nz.Absolute(1e-3))
    lightning_training(
        lightning, tmp_path, io, 4, [checkpointing(tmp_path, monitor="loss", save_top_k=1, save_last="link")]
    )
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(kept) == 2
    assert "last.ckpt" in kept
    assert len(io.store.log()) >= 4
    assert io.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 3
    assert [v.number for v in io.store.log()] == list(range(len(io.store.log())))


def test_lightning_bounds_and_maps(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    io = NearzipCheckpointIO(tmp_path / "store")
    weights = {"w": torch.randn(40, 30), "b": torch.randn(40)}
    path = tmp_path / "a.ckpt"
    io.save_checkpoint({"state_dict": weights, "epoch": 3, "loops": {"x": (1, None)}}, path, {"bound": "abs:0.01"})
    found = io.load_checkpoint(path, map_location="cpu")
    assert 0 < (found["state_dict"]["w"] - weights["w"]).abs().max() <= 0.01
    assert torch.equal(found["state_dict"]["b"], weights["b"])
    assert (found["epoch"], found["loops"]) == (3, {"x": (1, None)})
    assert "optimizer_states" not in found
    meta = io.load_checkpoint(path, map_location=lambda tensor, where: tensor + 1)
    assert torch.equal(meta["state_dict"]["b"], weights["b"] + 1)


def test_lightning_bad_input(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    io = NearzipCheckpointIO(tmp_path / "store")
    with pytest.raises(errors.UsageError, match=r"checkpoint\['hyper_parameters'\]\['model'\].*cannot be stored"):
        io.save_checkpoint({"state_dict": {}, "hyper_parameters": {"model": nn.Linear(2, 2)}}, tmp_path / "a.ckpt")
    with pytest.raises(errors.UsageError, match="storage_options are"):
        io.save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt", {"bounds": 1})
    with pytest.raises(errors.NotFoundError):
        io.load_checkpoint(tmp_path / "none.ckpt")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    with pytest.raises(errors.CorruptError, match="is no checkpoint of NearzipCheckpointIO"):
        io.load_checkpoint(tmp_path / "other.ckpt")
    io.remove_checkpoint(tmp_path / "none.ckpt")
    io.store.commit({"w": torch.ones(2)})
    (tmp_path / "b.ckpt").write_text('{"kind": "nearzip.lightning", "store": "", "version": 0}')
    with pytest.raises(errors.CorruptError, match="not a training state"):
        io.load_checkpoint(tmp_path / "b.ckpt")


def test_lightning_refuses_another_model(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    for number in range(2):
        io = NearzipCheckpointIO(tmp_path / "store")
        for _ in range(2):
            io.save_checkpoint({"state_dict": {"w": torch.ones(4, 3)}}, tmp_path / f"{number}.ckpt")
        with pytest.raises(errors.UsageError, match=r"'w' was \[4, 3\], is \[5, 3\]; save another model"):
            io.save_checkpoint({"state_dict": {"w": torch.ones(5, 3)}}, tmp_path / f"{number}-5.ckpt")
        assert not (tmp_path / f"{number}-5.ckpt").exists()
    assert len(io.store) == 4


@pytest.fixture
def research(lightning):
    """A module with the hyperparameters that research code has."""
    from argparse import Namespace

    class Research(lightning.LightningModule):
        def __init__(self, path, options, device, sizes, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(4, width)

        def training_step(self, batch, index):
            loss = self.layer(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    named = {
        "path": Path("data/train"), "options": Namespace(lr=0.1, out=Path("x")), "device": torch.device("cuda", 1),
        "sizes": torch.Size([2, 3]), "width": 5,
    }  # fmt: skip
    return Research, named


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_lightning_loads_the_best_checkpoint_with_its_hyperparameters(lightning, research, tmp_path, weights_only):
    from nearzip.torch.lightning import NearzipCheckpointIO

    kind, named = research
    best = checkpointing(tmp_path, monitor="loss", save_top_k=1)
    model = kind(**named)
    io = NearzipCheckpointIO(tmp_path / "store")
    trainer = lightning.Trainer(
        max_epochs=2, default_root_dir=tmp_path, plugins=[io], callbacks=[best], accelerator="cpu", devices=1,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=4))
    found = kind.load_from_checkpoint(best.best_model_path, weights_only=weights_only)
    assert dict(found.hparams) == named
    expected = io.load_checkpoint(best.best_model_path)["state_dict"]
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert kind.load_from_checkpoint(best.best_model_path, width=5, path=Path("new")).hparams.path == Path("new")
    assert io.store.log()[-1].metrics["loss"] == pytest.approx(float(best.current_score))


def test_lightning_reads_the_files_of_older_releases(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    io = NearzipCheckpointIO(tmp_path / "store")
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}, "epoch": 1}, tmp_path / "a.ckpt")
    (tmp_path / "old.ckpt").write_text(f'{{"kind": "nearzip.lightning", "store": "{io.store.url}", "version": 0}}')
    assert io.load_checkpoint(tmp_path / "old.ckpt")["epoch"] == 1
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["epoch"] == 1


def test_lightning_loads_from_another_folder(lightning, tmp_path, monkeypatch):
    from nearzip.torch.lightning import NearzipCheckpointIO

    monkeypatch.chdir(tmp_path)
    io = NearzipCheckpointIO("store", keep="last:1")
    for n in range(3):
        io.save_checkpoint({"state_dict": {"w": torch.ones(2)}, "epoch": n}, f"{n}.ckpt")
    monkeypatch.chdir("/")
    for n in range(3):
        assert torch.load(tmp_path / f"{n}.ckpt", weights_only=True)["epoch"] == n


def test_lightning_keeps_what_a_file_refers_to(lightning, tmp_path):
    from nearzip.torch.lightning import NearzipCheckpointIO

    def save(io, n, score=0.5):
        state = {"state_dict": {"w": torch.full((3, 3), float(n))}, "epoch": n}
        callbacks = {"best": {"monitor": "val", "current_score": torch.tensor(score)}, "other": {"monitor": None}}
        io.save_checkpoint({**state, "callbacks": callbacks}, tmp_path / f"{n}.ckpt")

    def numbers(io):
        return [version.number for version in io.store.log()]

    io = NearzipCheckpointIO(tmp_path / "store", keep="last:1 best:val")
    save(io, 0, 0.9)
    for n in range(1, 4):
        save(io, n)
    assert numbers(io) == [0, 1, 2, 3]
    for n in range(3):
        io.remove_checkpoint(tmp_path / f"{n}.ckpt")
    again = NearzipCheckpointIO(tmp_path / "store", keep="last:1 best:val")  # after a restart
    save(again, 4)
    assert numbers(again) == [0, 3, 4]
    assert again.load_checkpoint(tmp_path / "3.ckpt")["epoch"] == 3
    with pytest.raises(errors.UsageError, match="cannot read the rule"):
        NearzipCheckpointIO(tmp_path / "store", keep="some")


# ---- transformers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("accelerate")
        return pytest.importorskip("transformers")


def trainer_of(transformers, folder, callbacks, steps=6):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    rows = torch.randint(0, 32, (32, 16), generator=torch.Generator().manual_seed(1))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=2, save_total_limit=1, logging_steps=2, use_cpu=True,
        per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    return transformers.Trainer(
        transformers.GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=callbacks
    )


@pytest.mark.parametrize("replace", [False, True])
def test_transformers_goes_on_bit_for_bit(transformers, tmp_path, replace):
    from nearzip.torch.transformers import NearzipCallback, materialize

    straight = trainer_of(transformers, tmp_path / "straight", [])
    straight.train()
    # The same schedule, ended in the middle.
    first = trainer_of(transformers, tmp_path / "one", [NearzipCallback(tmp_path / "store", replace=replace), Ends(4)])
    first.train()
    store = nz.Store(tmp_path / "store")
    assert [version.step for version in store.log()] == [2, 4]
    left = {path.name for path in (tmp_path / "one" / "checkpoint-4").iterdir()}
    assert ("model.safetensors" in left) != replace
    folder = materialize(store, tmp_path / "two", 1)
    assert folder.endswith("checkpoint-4")
    second = trainer_of(transformers, tmp_path / "two", [])
    second.train(resume_from_checkpoint=folder)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def Ends(at):  # noqa: N802 - a callback's name
    import transformers

    class Ending(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step >= at

    return Ending()


def test_transformers_bounds_and_bad_input(transformers, tmp_path):
    from nearzip.torch.transformers import NearzipCallback, _inside, materialize

    callback = NearzipCallback(tmp_path / "store", bound=nz.Absolute(1e-3))
    trainer = trainer_of(transformers, tmp_path / "one", [callback], steps=2)
    trainer.train()
    folder = materialize(callback.store, tmp_path / "two")
    import safetensors.torch

    got = safetensors.torch.load_file(f"{folder}/model.safetensors")
    exact = safetensors.torch.load_file(tmp_path / "one" / "checkpoint-2" / "model.safetensors")
    assert got.keys() == exact.keys()
    assert 0 < max((got[name] - exact[name]).abs().max() for name in got) <= 1e-3
    with pytest.raises(errors.UsageError, match="is there already"):
        materialize(callback.store, tmp_path / "two")
    again = NearzipCallback(tmp_path / "store")
    safetensors.torch.save_file({**exact, "x": torch.ones(2)}, tmp_path / "one" / "checkpoint-2" / "model.safetensors")

    class Here:
        is_world_process_zero, global_step, log_history = True, 2, []

    with pytest.raises(errors.UsageError, match=r"'x' was not there, is \[2\]; save another model"):
        again.on_save(trainer.args, Here, None)
    callback.store.commit({"w": torch.ones(2)})
    with pytest.raises(errors.CorruptError, match="not a training state"):
        materialize(callback.store, tmp_path / "three")
    for name in ("../x", "/x", "a/../../b", "", "c:\\x"):
        with pytest.raises(errors.CorruptError, match="no file named"):
            _inside(name)

    class State:
        is_world_process_zero, global_step, log_history = True, 99, []

    class Arguments:
        output_dir = str(tmp_path / "one")

    with pytest.raises(errors.NotFoundError, match="checkpoint-99"):
        callback.on_save(Arguments, State, None)


def checkpoint_of(folder, step):
    """What the Trainer gives its callbacks, and the folder of its checkpoint."""
    import types

    target = folder / f"checkpoint-{step}"
    target.mkdir(parents=True)
    arguments = types.SimpleNamespace(output_dir=str(folder))
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=step, log_history=[])
    return target, (arguments, state, None)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("replace", [False, True])
def test_transformers_adapters_come_back_byte_for_byte(transformers, tmp_path, replace):
    from safetensors.torch import save_file

    from nearzip.torch.transformers import NearzipCallback, materialize

    callback = NearzipCallback(tmp_path / "store", replace=replace)
    expected = []
    for step in (2, 4):
        folder, told = checkpoint_of(tmp_path / "one", step)
        (folder / "second").mkdir()
        for own in (folder, folder / "second"):  # PEFT puts further adapters into subfolders
            weights = {f"base_model.model.q.lora_{x}.weight": torch.randn(4, 8) for x in "AB"}
            save_file(weights, own / "adapter_model.safetensors", {"format": "pt"})
            (own / "adapter_config.json").write_text('{"r": 4}')
        parameter = nn.Parameter(torch.randn(4, 8))
        optimizer = torch.optim.AdamW([parameter])
        parameter.grad = torch.ones(4, 8)
        optimizer.step()
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        expected.append(files_in(folder))
        callback.on_save(*told)
    callback.on_train_end(*told)
    left = files_in(folder)
    assert ("adapter_model.safetensors" in left) != replace
    assert ("second/adapter_model.safetensors" in left) != replace
    assert "adapter_config.json" in left
    assert "model/base_model.model.q.lora_A.weight" in callback.store.checkout()
    for version, files in enumerate(expected):
        got = files_in(tmp_path / "two" / Path(materialize(callback.store, tmp_path / "two", version)).name)
        assert got.keys() == files.keys()
        for name in files.keys() - {"optimizer.pt"}:
            assert got[name] == files[name], name
    with pytest.raises(errors.UsageError, match="is there already"):
        materialize(callback.store, tmp_path / "two")
    assert materialize(callback.store, tmp_path / "one", 1).endswith("4") if replace else True


def test_transformers_shards_come_back_as_they_were(transformers, tmp_path):
    from nearzip.torch.transformers import NearzipCallback, materialize

    folder, told = checkpoint_of(tmp_path / "one", 2)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder, max_shard_size="10KB")
    expected = files_in(folder)
    assert sum(name.endswith(".safetensors") for name in expected) > 1
    assert "model.safetensors.index.json" in expected
    callback = NearzipCallback(tmp_path / "store", replace=True)
    callback.on_save(*told)
    callback.on_train_end(*told)
    assert not any(name.endswith(".safetensors") for name in files_in(folder))
    got = materialize(callback.store, tmp_path / "two")
    assert files_in(Path(got)) == expected
    again = transformers.GPT2LMHeadModel.from_pretrained(got)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_transformers_go_on_with_a_resized_vocabulary(transformers, tmp_path):
    from nearzip.torch.transformers import NearzipCallback, materialize

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64))
    callback = NearzipCallback(tmp_path / "store")
    for step, n in ((2, 64), (4, 70)):
        model.resize_token_embeddings(n)
        folder, told = checkpoint_of(tmp_path / "one", step)
        model.save_pretrained(folder)
        callback.on_save(*told, model=model)
    callback.on_train_end(*told)
    for version, n in ((0, 64), (1, 70)):
        got = materialize(callback.store, tmp_path / "two", version)
        assert transformers.GPT2LMHeadModel.from_pretrained(got).get_input_embeddings().num_embeddings == n


def test_transformers_weights_and_adapters_together_with_a_bound(transformers, tmp_path):
    from safetensors.torch import load_file, save_file

    from nearzip.torch.transformers import NearzipCallback, materialize

    folder, told = checkpoint_of(tmp_path / "one", 2)
    weights = {"q.weight": torch.randn(40, 30), "ids": torch.arange(60).reshape(6, 10)}
    save_file(weights, folder / "model.safetensors")
    save_file({"q.weight": torch.zeros(3, 3)}, folder / "adapter_model.safetensors")
    callback = NearzipCallback(tmp_path / "store", bound="abs:0.01")
    callback.on_save(*told)
    callback.on_train_end(*told)
    got = Path(materialize(callback.store, tmp_path / "two"))
    restored = load_file(got / "model.safetensors")
    assert 0 < (restored["q.weight"] - weights["q.weight"]).abs().max() <= 0.01
    assert torch.equal(restored["ids"], weights["ids"])
    assert torch.equal(load_file(got / "adapter_model.safetensors")["q.weight"], torch.zeros(3, 3))


@pytest.mark.parametrize(("name", "message"), [
    ("pytorch_model.bin", "weights are in pytorch_model.bin.*save_safetensors=True"),
    ("adapter_model.bin", "weights are in adapter_model.bin.*save_safetensors=True"),
    ("pytorch_model_fsdp_0/x.distcp", "weights are in pytorch_model_fsdp_0.*nearzip.torch.dcp"),
    ("training_args.bin", "no .safetensors file"),
])  # fmt: skip
def test_transformers_without_safetensors(transformers, tmp_path, name, message):
    from nearzip.torch.transformers import NearzipCallback

    folder, told = checkpoint_of(tmp_path / "one", 2)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    callback = NearzipCallback(tmp_path / "store")
    with pytest.raises(errors.Error, match=message):
        callback.on_save(*told)


def test_transformers_versions_of_older_releases_and_damaged_ones(transformers, tmp_path):
    from safetensors.torch import load_file, save_file

    from nearzip.torch.state import TrainingState
    from nearzip.torch.transformers import NearzipCallback, materialize

    folder, told = checkpoint_of(tmp_path / "one", 2)
    save_file({"w": torch.ones(3, 3)}, folder / "model.safetensors")
    callback = NearzipCallback(tmp_path / "store")
    callback.on_save(*told)
    callback.on_train_end(*told)
    state = TrainingState.from_arrays(callback.store.checkout())
    old = {key: value for key, value in state.document.items() if key != "shards"}
    callback.store.commit(TrainingState(state.tensors, old).to_arrays())
    got = materialize(callback.store, tmp_path / "two")
    assert torch.equal(load_file(f"{got}/model.safetensors")["w"], torch.ones(3, 3))
    for shards in (
        1,
        [1],
        [["a", {}]],
        [["a", {}, [["w", "x"]]]],
        [["../a", {}, []]],
        [[1, {}, []]],
        [["a", {}, [[1, 2]]]],
    ):
        callback.store.commit(TrainingState(state.tensors, {**old, "shards": shards}).to_arrays())
        with pytest.raises(errors.CorruptError):
            materialize(callback.store, tmp_path / "three")
    assert not list((tmp_path / "three").glob("*"))
