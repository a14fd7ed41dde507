"""DeepSZ's Figures 2, 4 and 6 on a pruned network: SZ against ZFP, coders of the index array, linearity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.papers.deepsz.case import Case, Row, compressed, two_arrays
from experiments.papers.deepsz.pruning import Tensors
from nearzip.stages import Blosc, Chain, Context, Gzip, Lzma, Rans, RawBytes, Sparse, Sz3, Zfp, Zstd

#: Figure 6 looks at losses up to here: a share of 1.
WIDEST = 0.02
_N_BOUNDS, _N_SAMPLES = 64, 120


def figures(case: Case, tensors: Tensors) -> Row:
    return {
        "sz_against_zfp": sz_against_zfp(case, tensors), "index_coders": index_coders(case, tensors),
        "linearity": linearity(case, tensors),
    }  # fmt: skip


def sz_against_zfp(case: Case, tensors: Tensors) -> list[Row]:
    """Figure 2: ratios on the data arrays."""
    rows = []
    for name, bound in itertools.product(case.names, (1e-2, 1e-3, 1e-4)):
        values = two_arrays(tensors, name)[0]
        context = Context.of(values)
        sizes = {}
        for stage in (Sz3(bound), Sz3(bound, "INTERP_LORENZO"), Sz3(bound, "NOPRED"), Zfp(bound)):
            key = stage.id + (f" {stage.algorithm}" if isinstance(stage, Sz3) and stage.algorithm != "smaller" else "")
            sizes[key] = len(stage.encode(values, context).data)
        rows.append({"layer": name, "bound": bound, "n": values.size,
                     "ratios": {k: values.nbytes / s for k, s in sizes.items()}})  # fmt: skip
    return rows


def index_coders(case: Case, tensors: Tensors) -> list[Row]:
    """Figure 4: ratios on the index arrays; and nearzip's coder on gaps without padding, bytes against bytes."""
    rows = []
    for name in case.names:
        gaps = two_arrays(tensors, name)[1]
        context = Context(gaps.dtype, (gaps.size,))
        coders = {"gzip": Gzip(), "zstd": Zstd(), "blosc": Blosc(typesize=1), "lzma": Lzma()}
        sizes = {key: len(stage.encode(gaps.tobytes(), context).data) for key, stage in coders.items()}
        flat = tensors[name].reshape(-1)
        unpadded = Sparse(Chain((RawBytes(),)), Chain((Rans(),)), gap_bits=32, fill=False)
        symbols = unpadded.split(flat, Context.of(flat))[0][1]
        sizes["rans"] = len(Rans().encode(symbols, Context(symbols.dtype, (symbols.size,))).data)
        rows.append({"layer": name, "ratios": {key: gaps.nbytes / size for key, size in sizes.items()}})
    return rows


# ---- Figure 6 --------------------------------------------------------------------------------------------------


def linearity(case: Case, tensors: Tensors) -> list[Row]:
    """The sum of the layers' own losses against the loss of all together, on the held-out images.

    Combinations are drawn so that their expected losses spread over 0 to 2 points, however they are shared out.
    """
    before = case.validation(tensors)
    alone = {name: _assessed(case, tensors, name, before) for name in case.names}
    rows = []
    for picked in combinations({name: list(found) for name, found in alone.items()}):
        together = {name: alone[name][loss] for name, loss in picked.items()}
        actual = before - case.validation({**tensors, **together})
        rows.append({"expected": sum(picked.values()), "actual": actual})
    return rows


def _assessed(case: Case, tensors: Tensors, name: str, before: float) -> dict[float, np.ndarray]:
    """Losses of a layer alone, and what it is restored to; of equal losses the coarsest bound."""
    found = {}
    for bound in np.geomspace(0.01, 0.4, _N_BOUNDS):
        restored = compressed("deepsz", tensors, {name: float(bound)}).restored[name]
        loss = before - case.validation({**tensors, name: restored})
        if loss <= WIDEST:
            found[loss] = restored
    return found


def combinations(losses: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """A loss for each layer, the sums spread evenly over 0 to `WIDEST`, each combination once."""
    rng = np.random.default_rng(0)
    found = {}
    for wanted in np.linspace(0, WIDEST, _N_SAMPLES):
        shares = wanted * rng.dirichlet(np.ones(len(losses)))
        picked = {
            name: min(own, key=lambda loss, share=share: abs(loss - share))  # type: ignore[misc]
            for (name, own), share in zip(losses.items(), shares, strict=True)
        }
        found[tuple(picked.values())] = picked
    return list(found.values())
