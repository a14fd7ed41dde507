"""Real Lightning, real transformers: training goes on from a store as it would have gone on."""

from __future__ import annotations

import warnings

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
