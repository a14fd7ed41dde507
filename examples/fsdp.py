"""FSDP on two processes, saved by PyTorch's distributed engine; run it again, on as many processes as you like.

python examples/fsdp.py --folder runs/fsdp --steps 10 --processes 2
"""

import argparse
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import nearzip as nz
from nearzip.torch.dcp import NearzipReader, NearzipWriter


def train(rank: int, processes: int, port: int, folder: str, steps: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def state() -> dict:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optim": moments, "step": step}

    step = 0
    if (Path(folder) / "index").exists():
        found = state()
        dcp.load(found, storage_reader=NearzipReader(folder))
        set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optim"])
        step = found["step"]
        if rank == 0:
            print(f"going on from step {step}")
    writer = NearzipWriter(folder, bound=nz.Absolute(1e-3))
    end = step + steps
    while step < end:
        step += 1
        loss = model(torch.randn(16, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            dcp.save(state(), storage_writer=writer, checkpoint_id=f"step {step}")
    if rank == 0:
        print(f"step {step}: loss {loss.item():.4f}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="runs/fsdp")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (arguments.processes, port, arguments.folder, arguments.steps), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
