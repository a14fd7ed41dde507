"""Small and cold: what an archive costs before its first value, in bytes and in time.

Networks of small tensors, and updates of them, lossless. The same blocks with the index in columns (format 3), as JSON
(format 2, read by the same code) and in the wire form of federated rounds, which has no names. Times are processor
milliseconds: to open, and to have the first tensor as well, of a file without a base; and those of whole commands.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import nearzip as nz
from experiments.lab import record
from nearzip.bounds import EXACT
from nearzip.digests import checkpoint_id
from nearzip.federated.message import Group, pack
from nearzip.framing import FOOTER_BYTES, HEADER_BYTES
from nearzip.tensors import Checkpoint
from nearzip.testing import seal, unseal

_REPEATS = 15
_GPT2 = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip
_BLOCK = (
    "attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight", "mlp.up.weight", "mlp.down.weight",
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
)  # fmt: skip


def shapes(n: int) -> dict[str, tuple[int, ...]]:
    """6: a small convolutional network. 148: GPT-2's names. 10,000: a thousand layers of ten tensors."""
    if n == 6:
        return {
            "conv1.weight": (8, 1, 3, 3), "conv1.bias": (8,), "conv2.weight": (16, 8, 3, 3), "conv2.bias": (16,),
            "fc.weight": (10, 64), "fc.bias": (10,),
        }  # fmt: skip
    if n == 148:
        ends = {"wte.weight": (64, 8), "wpe.weight": (64, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
        layers = {f"h.{i}.{k}": (8, 8) if "c_" in k and "weight" in k else (8,) for i in range(12) for k in _GPT2}
        return {f"transformer.{name}": shape for name, shape in (layers | ends).items()}
    return {f"model.layers.{i}.{k}": (4,) if "norm" in k else (4, 4) for i in range(n // 10) for k in _BLOCK}


def networks(n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A network, and the next version of it."""
    rng = np.random.default_rng(n)
    old = {name: 0.1 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes(n).items()}
    return old, {name: w + rng.normal(0, 1e-3, w.shape).astype(np.float32) for name, w in old.items()}


def with_json(archive: bytes) -> bytes:
    """The same archive with an index of JSON, compressed as writers of formats 1 and 2 did."""
    document, blocks = unseal(archive)
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return seal(text, blocks, stored=zstandard.ZstdCompressor(level=12).compress(text))


def wire(archive: nz.Archive, new: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> int:
    """Bytes of a message with the same blocks."""
    base, values = Checkpoint.of(old), Checkpoint.of(new)
    groups = [
        Group(s.tensors, s.blocks[0].pipeline, (EXACT,) * len(s.tensors), s.block_bytes, True)
        for s in archive.report.index.segments
    ]
    data, _ = pack(groups, Checkpoint.of({}), values, base, bytes.fromhex(checkpoint_id(base)))
    return len(data)


def milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return 1e3 * sorted(times)[_REPEATS // 4]


def row(n: int, folder: Path) -> dict[str, Any]:
    old, new = networks(n)
    update, alone = nz.compress(new, base=old), nz.compress(new)
    data = update.to_bytes()
    older = with_json(data)
    back = nz.decompress(older, base=old), nz.decompress(data, base=old)
    assert all(np.array_equal(w, b[name]) for b in back for name, w in new.items())
    blocks = sum(block.length for segment in update.report.index.segments for block in segment.blocks)
    first = next(iter(new))
    found: dict[str, Any] = {
        "tensors": n, "blocks": blocks, "wire": wire(update, new, old),
        "columns": {"bytes": len(data)}, "json": {"bytes": len(older)},
    }  # fmt: skip
    for form, content in (("columns", alone.to_bytes()), ("json", with_json(alone.to_bytes()))):
        path = folder / f"{n}-{form}.nz"
        path.write_bytes(content)
        found[form]["open_ms"] = milliseconds(lambda path=path: nz.open(path).close())  # type: ignore[misc]
        found[form]["first_ms"] = milliseconds(lambda path=path: nz.open(path)[first])  # type: ignore[misc]
    assert found["json"]["bytes"] - blocks > HEADER_BYTES + FOOTER_BYTES
    return found


def command(cache: str, *arguments: str) -> float:
    """Processor milliseconds of a whole process, the least of five, after a first one that compiles all modules.

    Installed packages have their modules compiled, here they are in `cache`.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    times = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "nearzip", *arguments], stdout=subprocess.DEVNULL, check=True, env=environment
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return 1e3 * min(times[1:])


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench small", description=__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row(n, folder) for n in (6, 148, 10_000)]
        cache, archive, output = str(folder / "cache"), str(folder / "6-columns.nz"), str(folder / "o.npz")
        commands = {
            "--help": command(cache, "--help"),
            "inspect": command(cache, "inspect", archive),
            "decompress": command(cache, "decompress", archive, "-o", output, "--force"),
        }
    record.save("small", {"rows": rows, "commands_ms": commands}, ("nearzip", "numpy", "zstandard"))
