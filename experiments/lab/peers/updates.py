"""Codecs of federated updates by others, written in NumPy from their papers: for comparison, not for use.

float32 arrays by name in, one message out. Positions and levels are entropy-coded where the method says so.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.peers.environments import python_of
from experiments.lab.peers.nnc import NncodecTrellisPeer

_ROOT = Path(__file__).parents[3]

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class UpdateCodec(ABC):
    """One method. `seed` changes with every message; `seconds`: of processors, in other processes than this one."""

    seconds = 0.0

    @abstractmethod
    def encode(self, update: Arrays, seed: int) -> bytes:
        """The message."""

    @abstractmethod
    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        """What the server gets."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let other processes go."""


class Raw(UpdateCodec):
    """Values as they are."""

    def __init__(self, dtype: str = "float32") -> None:
        self._dtype = np.dtype(dtype)

    def encode(self, update: Arrays, seed: int) -> bytes:
        return b"".join(value.astype(self._dtype).tobytes() for value in update.values())

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        found, at = {}, 0
        for name, shape in shapes.items():
            n = int(np.prod(shape))
            found[name] = np.frombuffer(data, self._dtype, n, at).astype(np.float32).reshape(shape)
            at += n * self._dtype.itemsize
        return found


def _flat(update: Arrays) -> np.ndarray:
    return np.concatenate([value.reshape(-1) for value in update.values()])


def _unflat(values: np.ndarray, shapes: Shapes) -> Arrays:
    found, at = {}, 0
    for name, shape in shapes.items():
        n = int(np.prod(shape))
        found[name] = values[at : at + n].reshape(shape).astype(np.float32)
        at += n
    return found


class ThreeLC(UpdateCodec):
    """3LC (Lim et al., MLSys 2019): three values by a scale s times the largest, five to a byte, runs of zeros."""

    def __init__(self, s: float = 1.0) -> None:
        self._s = s

    def encode(self, update: Arrays, seed: int) -> bytes:
        heads, levels = [], []
        for value in update.values():
            scale = np.float32(np.abs(value).max() * self._s) if value.size else np.float32(0)
            heads.append(scale.tobytes())
            levels.append(np.rint(value.reshape(-1) / (scale or 1)).clip(-1, 1).astype(np.int16) + 1)
        flat = np.concatenate(levels)
        padded = np.concatenate([flat, np.ones(-flat.size % 5, np.int16)]).reshape(-1, 5)
        codes = (padded @ np.array([81, 27, 9, 3, 1])).astype(np.uint8)
        return b"".join(heads) + _zero_runs(codes)

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        scales = np.frombuffer(data, "<f4", len(shapes))
        codes = _no_zero_runs(data[4 * len(shapes) :]).astype(np.int16)
        flat = np.stack([codes // base % 3 for base in (81, 27, 9, 3, 1)], 1).reshape(-1) - 1
        found = _unflat(flat.astype(np.float32), shapes)
        return {name: found[name] * scale for name, scale in zip(found, scales, strict=True)}


#: Five zeros; 2 to 14 of these in a row are one byte from 243 on.
_FIVE_ZEROS, _LONGEST_RUN = 121, 14


def _zero_runs(codes: np.ndarray) -> bytes:
    out, run = bytearray(), 0

    def end() -> None:
        nonlocal run
        while run:
            n = min(run, _LONGEST_RUN)
            out.append(_FIVE_ZEROS if n == 1 else 243 + n - 2)
            run -= n

    for code in codes.tobytes():
        if code == _FIVE_ZEROS:
            run += 1
        else:
            end()
            out.append(code)
    end()
    return bytes(out)


def _no_zero_runs(data: bytes) -> np.ndarray:
    codes = np.frombuffer(data, np.uint8)
    repeats = np.where(codes >= 243, codes.astype(np.int64) - 241, 1)
    return np.repeat(np.where(codes >= 243, _FIVE_ZEROS, codes), repeats)


def _rotated(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Hadamard transform of the values with random signs, in blocks of the signs' length, a power of two."""
    n = signs.size
    blocks = values.reshape(-1, n).astype(np.float32) * signs
    h = 1
    while h < n:
        pairs = blocks.reshape(-1, n // (2 * h), 2, h)
        blocks = np.concatenate([pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], 2).reshape(
            -1, n
        )
        h *= 2
    return blocks / np.float32(np.sqrt(n))


class Eden(UpdateCodec):
    """EDEN (Vargaftik et al., ICML 2022) with one or two bits: random rotation, levels of a normal distribution, and a
    scale that makes the result right on average. Blocks of 2^16 values share rotation and scale.
    """

    _LEVELS = {1: [0.7978845608], 2: [0.4527800398, 1.5104176087]}  # noqa: RUF012
    _BLOCK = 1 << 16

    def __init__(self, bits: int = 1) -> None:
        self._bits = bits
        positive = np.array(self._LEVELS[bits], np.float32)
        self._levels = np.concatenate([-positive[::-1], positive])
        self._edges = (self._levels[1:] + self._levels[:-1]) / 2

    def _signs(self, n: int, seed: int) -> np.ndarray:
        size = min(self._BLOCK, 1 << max(0, (n - 1).bit_length()))
        return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), size)

    def encode(self, update: Arrays, seed: int) -> bytes:
        flat = _flat(update)
        signs = self._signs(flat.size, seed)
        padded = np.concatenate([flat, np.zeros(-flat.size % signs.size, np.float32)])
        rotated = _rotated(padded, signs)
        rms = np.sqrt(np.mean(rotated.astype(np.float64) ** 2, 1, keepdims=True)) + 1e-30
        numbers = np.searchsorted(self._edges, (rotated / rms).astype(np.float32))
        chosen = self._levels[numbers].astype(np.float64)
        scales = (np.sum(rotated.astype(np.float64) ** 2, 1) / (np.sum(rotated * chosen, 1) + 1e-30)).astype("<f4")
        bits = (numbers[..., None] >> np.arange(self._bits) & 1).astype(np.uint8)
        return np.int64(seed).tobytes() + scales.tobytes() + np.packbits(bits.reshape(-1)).tobytes()

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        n = sum(int(np.prod(shape)) for shape in shapes.values())
        signs = self._signs(n, int(np.frombuffer(data, "<i8", 1)[0]))
        n_blocks = -(-n // signs.size)
        scales = np.frombuffer(data, "<f4", n_blocks, 8)
        raw = np.unpackbits(np.frombuffer(data, np.uint8, offset=8 + 4 * n_blocks))
        bits = raw[: n_blocks * signs.size * self._bits].reshape(-1, self._bits)
        numbers = bits @ (1 << np.arange(self._bits))
        values = self._levels[numbers].reshape(n_blocks, -1) * scales[:, None]
        back = _rotated(values, np.ones_like(signs)) * signs
        return _unflat(back.reshape(-1)[:n], shapes)


class PowerSgd(UpdateCodec):
    """PowerSGD (Vogels et al., NeurIPS 2019) for one client: each matrix as the product of two thin ones, by power
    iteration. Vectors travel in float32.
    """

    def __init__(self, rank: int = 2) -> None:
        self._rank = rank

    def _is_matrix(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and self._rank * (shape[0] + int(np.prod(shape[1:]))) < int(np.prod(shape))

    def encode(self, update: Arrays, seed: int) -> bytes:
        parts = []
        for value in update.values():
            if not self._is_matrix(value.shape):
                parts.append(value)
                continue
            matrix = value.reshape(value.shape[0], -1).astype(np.float64)
            # Three iterations from a random start; the paper does one, from what the message before ended with.
            q = np.random.default_rng(seed).normal(size=(matrix.shape[1], self._rank))
            for _ in range(3):
                p, _ = np.linalg.qr(matrix @ q)
                q = matrix.T @ p
            parts += [p, q]
        return b"".join(part.astype("<f4").tobytes() for part in parts)

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        found, at = {}, 0

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            n = int(np.prod(shape))
            values = np.frombuffer(data, "<f4", n, at).reshape(shape)
            at += 4 * n
            return values

        for name, shape in shapes.items():
            if self._is_matrix(shape):
                p, q = take(shape[0], self._rank), take(int(np.prod(shape[1:])), self._rank)
                found[name] = (p @ q.T).reshape(shape).astype(np.float32)
            else:
                found[name] = take(*shape).copy()
        return found


class FedSz(UpdateCodec):
    """FedSZ (Wilkins et al., 2024): tensors over 1024 values through SZ3 with a relative bound, the rest through zlib.

    Here on updates; APPFL compresses whole models so.
    """

    def __init__(self, rel: float = 1e-2) -> None:
        self._rel = rel

    def encode(self, update: Arrays, seed: int) -> bytes:
        from pysz import sz, szConfig, szErrorBoundMode  # type: ignore[import-not-found]

        out = []
        for value in update.values():
            if value.size > 1024:
                config = szConfig()
                config.errorBoundMode = szErrorBoundMode.REL
                config.relErrorBound = self._rel
                data = bytes(sz.compress(np.ascontiguousarray(value.reshape(-1)), config)[0].tobytes())
            else:
                data = zlib.compress(value.tobytes())
            out.append(len(data).to_bytes(4, "little") + data)
        return b"".join(out)

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        from pysz import sz

        found, at = {}, 0
        for name, shape in shapes.items():
            size = int.from_bytes(data[at : at + 4], "little")
            piece, at = data[at + 4 : at + 4 + size], at + 4 + size
            n = int(np.prod(shape))
            if n > 1024:
                values: Any = sz.decompress(np.frombuffer(piece, np.uint8), np.float32, (n,))[0]
            else:
                values = np.frombuffer(zlib.decompress(piece), np.float32)
            found[name] = np.asarray(values, np.float32).reshape(shape)
        return found


class NnCodec(UpdateCodec):
    """NNCodec with its trellis, in its own environment; `step`: in root mean squares of the update."""

    def __init__(self, step: float = 4.0) -> None:
        self._step = step
        command = [python_of(NncodecTrellisPeer.needs), "-m", "experiments.lab.peers.nnc_server"]
        self._server = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # Imports and the first call are not what is timed.
        shapes = {"w": (64, 64)}
        self.decode(self.encode({"w": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)}, 0), shapes)
        self.seconds = 0.0

    def _asked(self, data: bytes, **request: Any) -> bytes:
        to, back = self._server.stdin, self._server.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps({**request, "n": len(data)}).encode() + b"\n" + data)
        to.flush()
        answer = json.loads(back.readline())
        self.seconds += answer["seconds"]
        return back.read(answer["n"])

    def encode(self, update: Arrays, seed: int) -> bytes:
        rms = math.sqrt(float(np.square(_flat(update), dtype=np.float64).mean())) or 1.0
        # A QP is a quarter of a power of two; a trellis has two quantizers, each with twice the step.
        qp = round(4 * math.log2(self._step * rms)) - 3
        arrays = io.BytesIO()
        np.savez(arrays, **update)  # type: ignore[arg-type]
        return self._asked(arrays.getvalue(), encode=True, qp=qp)

    def decode(self, data: bytes, shapes: Shapes) -> Arrays:
        found = np.load(io.BytesIO(self._asked(data, encode=False)))
        return {name: found[name].reshape(shape).astype(np.float32) for name, shape in shapes.items()}

    def close(self) -> None:
        self._server.communicate()


CODECS: dict[str, Any] = {"fp32": Raw, "fp16": lambda: Raw("float16"), "3lc": ThreeLC, "eden": Eden,
                          "powersgd": PowerSgd, "fedsz": FedSz, "nncodec": NnCodec}  # fmt: skip
