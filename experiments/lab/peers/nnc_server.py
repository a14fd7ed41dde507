"""NNCodec for many messages: `python -m experiments.lab.peers.nnc_server` in its own environment, asked through pipes.

A request and an answer are a line of JSON and as many bytes as its `n` says: arrays (.npz) or an NNCodec stream. The
answer's `seconds` are those of the processor, for the call alone.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from typing import Any, BinaryIO

import numpy as np

from experiments.lab.peers.nnc import FINER, codec


def answered(request: dict[str, Any], data: bytes) -> tuple[bytes, float]:
    """The answer's bytes, and the processor seconds of the call."""
    if request["encode"]:
        arrays = dict(np.load(io.BytesIO(data)))
        with tempfile.TemporaryDirectory() as folder:
            how = {"qp": request["qp"], "nonweight_qp": request["qp"] - FINER, "use_dq": True}
            begin = time.process_time()
            stream = codec().encode(arrays, how | {"results": folder, "verbose": False})
            return bytes(stream), time.process_time() - begin
    begin = time.process_time()
    found = codec().decode(bytearray(data), {"verbose": False})
    seconds = time.process_time() - begin
    out = io.BytesIO()
    np.savez(out, **found)
    return out.getvalue(), seconds


def serve(source: BinaryIO, target: BinaryIO) -> None:
    while line := source.readline():
        request = json.loads(line)
        data, seconds = answered(request, source.read(request["n"]))
        target.write(json.dumps({"n": len(data), "seconds": seconds}).encode() + b"\n" + data)
        target.flush()


if __name__ == "__main__":
    # What the codec prints is not an answer.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, out)
