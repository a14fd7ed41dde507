"""The Trainer of transformers, with every checkpoint committed to a store and brought back to go on from.

python examples/transformers_training.py --folder runs/transformers --steps 20
"""

import argparse
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import nearzip as nz
from nearzip.torch.transformers import NearzipCallback, materialize


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="runs/transformers")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    folder = Path(arguments.folder)

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=32)
    callback = NearzipCallback(folder / "store", bound=nz.Absolute(1e-3), replace=True)
    texts = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (64, 32))]
    trainer = Trainer(
        GPT2LMHeadModel(config),
        TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=arguments.steps,
            save_steps=5,
            save_total_limit=2,
            logging_steps=5,
            per_device_train_batch_size=8,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=texts,
        callbacks=[callback],
    )
    resume = None
    if len(callback.store):
        resume = materialize(callback.store, folder / "checkpoints")
        print(f"going on from {resume}")
    result = trainer.train(resume_from_checkpoint=resume)
    print(f"step {result.global_step}: loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
