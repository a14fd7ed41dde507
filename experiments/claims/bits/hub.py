"""README's update as a store of deduplicated chunks transfers it: an imitation of the Hugging Face Hub's."""

from __future__ import annotations

import argparse

from experiments.lab import record, traces
from experiments.lab.peers import chunks

#: README's update.
PAIR = "transformer late"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench hub", description=__doc__)
    parser.add_argument("--data", help="folder with the traces (or NEARZIP_DATA)")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench hub needs the traces: --data DIR or NEARZIP_DATA")
    older, newer, _ = traces.PAIRS[PAIR]
    base, new = ((where / f"{name}.safetensors").read_bytes() for name in (older, newer))
    moved = chunks.transfer(new, base)
    found = {
        "pair": PAIR,
        "file_bytes": len(new),
        "bytes": moved.n_bytes,
        "n_chunks": moved.n_chunks,
        "n_new_chunks": moved.n_new_chunks,
        "alone_bytes": chunks.transfer(new, b"").n_bytes,
    }
    record.save("hub", found, ("numpy", "blosc2"))
