"""Table 10 of QD-Compressor's paper: what the parts of saving and restoring take.

Seconds of processor time: what a busy machine changes least. Every network is written as it is found.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import nearzip as nz
from experiments.lab import data, record
from experiments.papers.qd.feedback import METHODS, SETTINGS, Setting, dataset_of, train
from nearzip.stages import Lzma
from nearzip.torch.quantizers import range_quantizer

_clock = time.process_time


@contextlib.contextmanager
def timed(name: str) -> Iterator[list[float]]:
    """Seconds that calls of one of LZMA's methods take."""
    seconds: list[float] = []
    original = getattr(Lzma, name)

    def call(*arguments: Any) -> Any:
        begin = _clock()
        try:
            return original(*arguments)
        finally:
            seconds.append(_clock() - begin)

    with mock.patch.object(Lzma, name, call):
        yield seconds


def measure(setting: Setting, dataset: data.Dataset) -> dict[str, float]:
    """One epoch, and one version's way to disk and back (qd-compressor, 8 bits)."""
    with mock.patch.object(time, "perf_counter", _clock):  # which the training and its quantizer read
        run = train(setting, dataset, 0, 2, 8)
    old, new = run.versions
    settings = METHODS["qd-compressor"]
    base = nz.compress(old, threads=1, **settings).restored
    tensors = {name: torch.from_numpy(value) for name, value in new.items()}
    found = {"Training": (run.seconds - run.seconds_quantizing) / 2, "Quan, all steps": run.seconds_quantizing / 2}
    begin = _clock()
    range_quantizer(8, 8)(tensors)
    found["Quan"] = _clock() - begin
    begin = _clock()
    with timed("encode") as packing:
        archive = nz.compress(new, base, threads=1, **settings)
    found["LZMA Comp."] = sum(packing)
    found["Delta, check"] = _clock() - begin - sum(packing) - found["Quan"]
    with tempfile.TemporaryDirectory() as folder:
        path, begin = Path(folder) / "version.nz", _clock()
        archive.save(path)
        found["Store"] = _clock() - begin
        begin = _clock()
        with timed("decode") as unpacking:
            nz.decompress(path, base, threads=1)
        found["LZMA Decomp."] = sum(unpacking)
        found["Restore"] = _clock() - begin - sum(unpacking)
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench feedback_time", description=__doc__)
    parser.add_argument("--data", help="folder with MNIST and CIFAR-10 (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(SETTINGS), help="those that are not named keep theirs")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = record.load("qd_feedback_time").get("networks", {})
    rows = {name: before[name] for name in SETTINGS if name in before}
    for name in chosen.networks.split(","):
        rows[name] = measure(SETTINGS[name], dataset_of(SETTINGS[name], chosen.data))
        print(name, rows[name], file=sys.stderr)
        written = {name: rows[name] for name in SETTINGS if name in rows}
        record.save("qd_feedback_time", {"networks": written}, ("nearzip", "numpy", "torch"))
