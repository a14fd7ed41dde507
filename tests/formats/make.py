"""Write the golden files of this release, once, before it is released:

    python tests/formats/make.py [LABEL]

With a label, a folder of that label gets what no folder has yet: methods that were added since; with the label
"coding", updates of tensors so large that every kind of stream comes up; with the label "scaled", layers whose rows,
columns and kernels differ; with the label "lattice", updates at points of E8; with the label "matched", updates whose
base has other names, dtypes and numbers of rows; with the labels "columns" and "columns-matched", small updates with
an index in columns. They stay in the repository for good, and every later release reads them (`test_formats.py`).
Existing files are never replaced: a release whose format changes after its golden files were made, but before it is
out, removes its folder by hand first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import nearzip as nz
from nearzip.checkpoints import open_checkpoint, write_checkpoint
from nearzip.container import FORMAT_VERSION
from nearzip.recipes import recipe_types
from nearzip.tensors import DTYPES, Checkpoint

HERE = Path(__file__).parent

#: Cases beyond "every method with its defaults, alone and with a base": name, method, bound, options.
MORE = (
    ("nearzip-abs", "nearzip", "abs:1e-3", {}),
    ("nearzip-rel", "nearzip", "rel:1e-3", {}),
    ("nearzip-pwrel", "nearzip", "pwrel:0.01", {}),
    ("nearzip-rms", "nearzip", "rms:0.02", {}),
    ("delta-dnn-relative", "delta-dnn", None, {"mode": "relative", "eps": 0.01}),
    ("delta-dnn-rle-zstd", "delta-dnn", None, {"backend": "rle+zstd"}),
    ("delta-dnn-lzma", "delta-dnn", None, {"backend": "lzma"}),
    ("delta-dnn-zstd", "delta-dnn", None, {"backend": "zstd"}),
    ("qd-compressor-8", "qd-compressor", None, {"bits": 8, "backend": "zstd"}),
    ("qd-compressor-16", "qd-compressor", None, {"bits": 16, "backend": "gzip"}),
    ("qd-compressor-delta-first", "qd-compressor", None, {"variant": "delta-first"}),
    ("qd-compressor-global", "qd-compressor", None, {"variant": "global"}),
    ("deepsz-nearzip-exact", "deepsz-nearzip", "lossless", {"keep": {"fc*": 0.2, "large": 1.0}}),
    ("deep-compression-3", "deep-compression", None, {"keep": 0.3, "bits": 3}),
    ("weightless-all", "weightless", None, {"layers": "*", "clusters": 4, "bits": 11}),
    ("sz3-rel", "sz3", "rel:1e-3", {"algorithm": "INTERP_LORENZO"}),
    ("blosc-bits", "blosc", None, {"filter": "BITSHUFFLE", "codec": "LZ4"}),
    ("lc-checkpoint-8", "lc-checkpoint", None, {"bits": 8}),
    ("skcompress-large", "skcompress", None, {"keep": 0.2, "buckets": 16}),
    ("skcompress-sketch", "skcompress", None, {"keep": 0.2, "buckets": 16, "sketch": True}),
    ("deepreduce-p1-deflate", "deepreduce", None, {"keep": 0.1, "index": "bloom-p1", "values": "deflate"}),
    ("deepreduce-p2-poly", "deepreduce", None, {"keep": 0.2, "index": "bloom-p2", "values": "fit-poly", "eps": 0.05}),
    ("deepreduce-huffman-dexp", "deepreduce", None, {"keep": 0.1, "index": "huffman", "values": "fit-dexp"}),
    ("deepreduce-rle-raw", "deepreduce", None, {"keep": 0.3, "index": "rle", "values": "raw"}),
)


#: Updates of `wide_base` to `wide_new`.
WIDE = (
    ("coding-lossless", "nearzip", None, {}),
    ("coding-coarse", "nearzip", "abs:2e-3", {}),
    ("coding-fine", "nearzip", "abs:2e-5", {}),
)


SCALED = (
    ("scaled-coarse", "nearzip", "abs:1e-2", {}),
    ("scaled-fine", "nearzip", "abs:1e-3", {}),
)


LATTICE = tuple(
    (f"lattice-{name}", "nearzip", None, {"step": step, "unbiased": unbiased, "lattice": True})
    for name, step, unbiased in (("fine", 1e-3, False), ("middle", 8e-3, False), ("coarse", 16e-3, True))
)


MATCHED = (
    ("matched-lossless", "nearzip", None, {}),
    ("matched-update", "nearzip", "upd:0.1", {}),
)


#: Those of an index in columns, written since format 3: of all dtypes, ranks and patterns of names; and with matches.
COLUMNS = (
    ("columns-lossless", "nearzip", None, {}),
    ("columns-update", "nearzip", "upd:0.1", {}),
    ("columns-zstd", "zstd", None, {}),
)
COLUMNS_MATCHED = (
    ("columns-matched-lossless", "nearzip", None, {}),
    ("columns-matched-update", "nearzip", "upd:0.1", {}),
)


def matched_base() -> dict[str, np.ndarray]:
    """A network saved from behind a wrapper, some of it in other precisions; what overflows, and NaN."""
    rng = np.random.default_rng(2032)
    tensors = {
        f"_orig_mod.{name}": rng.normal(0, 0.05, (48, 64)).astype(np.float32) for name in ("same", "less", "least")
    }
    tensors["_orig_mod.less"][0, :3] = 1e9, -1e9, np.nan
    tensors["_orig_mod.more"] = rng.normal(0, 0.05, (48, 64)).astype(DTYPES["bfloat16"])
    tensors["plain"] = rng.normal(0, 0.05, 640)
    return tensors


def matched_new() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2033)
    dtypes = {"less": "float16", "least": "float8_e4m3fn", "more": "float32", "plain": "bfloat16"}
    tensors = {}
    for name, base in matched_base().items():
        moved = np.nan_to_num(base.astype(np.float32), posinf=0, neginf=0) + rng.normal(0, 1e-3, base.shape)
        own = name.removeprefix("_orig_mod.")
        tensors[own] = np.clip(moved, -1, 1).astype(DTYPES[dtypes.get(own, "float32")])
    tensors["same"] = np.concatenate([tensors["same"], np.ones((3, 64), np.float32)])
    tensors["more"] = tensors["more"][:-5].copy()
    return {**tensors, "tied": tensors["less"]}


def scaled_base() -> dict[str, np.ndarray]:
    shapes = {"conv": (32, 24, 3, 3), "conv1d": (20, 16, 5), "matrix": (64, 96), "bias": (64,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def scaled_new() -> dict[str, np.ndarray]:
    """Small noise repeated, times powers of two for rows and columns; nearly the same all over a kernel."""
    rng = np.random.default_rng(2030)
    tensors = scaled_base()
    for name, array in tensors.items():
        cells = array.shape[:2] + (1,) * (array.ndim - 2)
        scale = 0.01 * 2.0 ** sum(rng.integers(-2, 2, (*(1,) * axis, n, *(1,) * (array.ndim - axis - 1)))
                                  for axis, n in enumerate(cells[:2]))  # fmt: skip
        moves = np.resize(rng.normal(0, 1, 500), cells) + 0.2 * np.resize(rng.normal(0, 1, 500), array.shape)
        tensors[name] = (scale * moves).astype(np.float32)
    return tensors


def lattice_base() -> dict[str, np.ndarray]:
    """Groups that lie in rows and that do not, a last one that is not whole, a tensor that is too small."""
    shapes = {"matrix": (128, 144), "odd": (67, 63), "conv": (24, 32, 3, 3), "bias": (64,)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["matrix"] += np.float32(0.5)
    return tensors | {
        "wide": np.zeros((64, 65)),
        "short": np.zeros((64, 80), DTYPES["bfloat16"]),
        "half": np.zeros((64, 72), np.float16),
    }


def lattice_new() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2031)
    tensors = {}
    for name, array in lattice_base().items():
        moves = np.resize(rng.laplace(0, 4e-3, 1500), array.shape)
        tensors[name] = (array.astype(np.float64) + moves).astype(array.dtype)
    tensors["odd"][0, :4] = np.nan, np.inf, -np.inf, 3e38
    return tensors


def wide_base() -> dict[str, np.ndarray]:
    """Streams of 32 lanes and of 8, many contexts. Small noise repeated, so that the repository stays small."""
    rng = np.random.default_rng(2028)
    noise = rng.normal(0, 0.1, 1000) * 2.0 ** rng.integers(-6, 1, 1000)
    return {
        "wide.float32": np.tile(noise, 45).astype(np.float32),
        "wide.bfloat16": np.tile(noise, 60).astype(DTYPES["bfloat16"]),
        "sparse.float16": np.tile(noise, 40).astype(np.float16),
        "same.float64": noise[:100].copy(),
    }


def wide_new() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2029)
    tensors = wide_base()
    for name, array in tensors.items():
        moves = rng.laplace(0, 0.0004, array.shape)
        if name.startswith("sparse"):
            moves[rng.random(array.shape) > 0.002] = 0
        if not name.startswith("same"):
            tensors[name] = (array.astype(np.float64) + moves).astype(array.dtype)
    return tensors


#: Dtypes that are never rounded and have no arithmetic.
EXACT = ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2")


def raw(dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 100, (6, 7), np.uint8).view(dtype)


def base_network() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2026)
    tensors = {
        "conv.weight": rng.normal(0, 0.1, (16, 8, 3, 3)).astype(np.float32),
        "fc.weight": rng.standard_t(4, (60, 40)).astype(np.float32) * np.float32(0.05),
        "norm.weight": np.ones(60, np.float32),
        "norm.bias": np.zeros(60, np.float32),
        "tracked": np.array(41, np.int64),
        "embed.weight": rng.normal(0, 0.1, (30, 20)).astype(np.float32),
        "changes.shape": np.ones((4, 5), np.float32),
        "goes": np.ones(3, np.float32),
    }
    for name, dtype in DTYPES.items():
        if name in EXACT:
            tensors[f"dtype.{name}"] = raw(dtype, rng)
        elif name not in ("complex128", "complex32"):  # .safetensors has none
            values = rng.normal(0, 3, (6, 7)) if name != "bool" else rng.random((6, 7)) < 0.5
            kind = dtype.kind
            tensors[f"dtype.{name}"] = (np.abs(values) if kind == "u" else values).astype(np.float32).astype(dtype)
    return tensors


def new_network() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2027)
    tensors = base_network()
    for name, array in tensors.items():
        if name.removeprefix("dtype.") in EXACT:
            tensors[name] = raw(array.dtype, rng)
        elif array.dtype.kind in "biu":
            tensors[name] = array[..., ::-1].copy() if array.ndim else array + 1
        else:
            step = rng.normal(0, 0.004, array.shape)
            wide = array if array.dtype.kind == "c" else array.astype(np.float64)
            tensors[name] = (wide + step).astype(array.dtype)
    del tensors["goes"]
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38, -1e-38, 1.0], np.float32)
    special.view(np.uint32)[0] = 0x7FC01234  # a NaN with a payload
    return tensors | {
        "head.weight": tensors["embed.weight"],
        "changes.shape": np.ones((5, 4), np.float32),
        "comes": rng.normal(0, 0.1, 50).astype(np.float16),
        "special": special,
        "dtype.complex128": rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)),
        "empty": np.empty((0, 3), np.float32),
        "0-d": np.array(0.25, np.float64),
        "ünïcödé/名": np.arange(5, dtype=np.float32),
        # Three blocks of 4 MiB, nearly all zero.
        "large": np.where(np.arange(2_200_000) % 100_003 == 7, np.float32(0.5), np.float32(0)),
    }


def digests(tensors: dict[str, np.ndarray]) -> dict[str, list]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {
        name: [names[array.dtype], list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in tensors.items()
    }


def cases():
    for method in recipe_types():
        yield method, method, None, {}
    yield from MORE


def main() -> int:
    label = "".join(f"-{text}" for text in sys.argv[1:])
    folder = HERE / f"{nz.__version__}-format-{FORMAT_VERSION}{label}"
    written = {path.name for path in HERE.glob("*/*.nz")}
    updates, old, new = {
        "-coding": (WIDE, wide_base, wide_new),
        "-scaled": (SCALED, scaled_base, scaled_new),
        "-lattice": (LATTICE, lattice_base, lattice_new),
        "-matched": (MATCHED, matched_base, matched_new),
        "-columns": (COLUMNS, base_network, new_network),
        "-columns-matched": (COLUMNS_MATCHED, matched_base, matched_new),
    }.get(label, (None, base_network, new_network))
    missing = [case for case in updates or cases() if not label or f"{case[0]}-alone.nz" not in written]
    whole = HERE / f"{nz.__version__}-format-1"  # of this release, all methods: a later format has its labels
    if folder.exists() or (not label and whole.exists()) or not missing:
        print(f"{folder} exists already, or has nothing to hold; golden files are never replaced", file=sys.stderr)
        return 2
    folder.mkdir()
    source = Checkpoint.of(old())
    tensors = new()
    with write_checkpoint(folder / "base.safetensors", source.specs) as writer:
        for name, array in source.arrays():
            writer.write(name, array)
    base = dict(open_checkpoint(folder / "base.safetensors").arrays())
    expected = {}
    for name, method, bound, options in missing:
        for side, held in (("update", base),) if updates else (("alone", None), ("update", base)):
            archive = nz.compress(tensors, held, method, bound, options=options, metadata={"case": name})
            archive.save(folder / f"{name}-{side}.nz")
            expected[f"{name}-{side}.nz"] = {
                "id": archive.id,
                "base_id": archive.base_id,
                "sha256": hashlib.sha256(archive.to_bytes()).hexdigest(),
                "tensors": digests(archive.restored),
            }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(expected)} archives in {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
