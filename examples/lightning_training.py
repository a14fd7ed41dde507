"""Lightning, with its checkpoints in a store; written behind the training's back.

python examples/lightning_training.py --folder runs/lightning --epochs 3
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nearzip as nz
from nearzip.torch.lightning import NearzipCheckpointIO


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="runs/lightning")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(arguments.folder)

    torch.manual_seed(0)
    x = torch.randn(512, 32)
    data = DataLoader(TensorDataset(x, (x[:, :8].sum(dim=1) > 0).long()), batch_size=64, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        default_root_dir=folder,
        plugins=[AsyncCheckpointIO(NearzipCheckpointIO(folder / "store", bound=nz.Absolute(1e-3)))],
        callbacks=[ModelCheckpoint(folder / "checkpoints", filename="last", save_on_train_epoch_end=True)],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(Classifier(), data, ckpt_path=last if last.exists() else None)
    print(f"epoch {trainer.current_epoch}: loss {float(trainer.callback_metrics['loss']):.4f}")


if __name__ == "__main__":
    main()
