"""The bench's peers give back what they were given, and its divergence is that of the definition."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from experiments.lab.curves import bits_at, gap
from experiments.lab.peers import METHODS, PEERS, Peer, chunks
from experiments.lab.peers.base import Flat
from experiments.lab.peers.environments import is_here
from experiments.lab.peers.excp import k_means

UNIT = 1e-3
KINDS = METHODS + PEERS


def pair() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    base = {
        "weight": rng.normal(0, 0.05, (64, 96)).astype(np.float32),
        "bias": rng.normal(0, 0.05, 96).astype(np.float32),
        "steps": np.array(700, np.int64),
    }
    new = {name: (w + rng.normal(0, 2 * UNIT, w.shape)).astype(np.float32) for name, w in base.items()}
    return base, new | {"steps": np.array(750, np.int64)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_peer_gives_back_what_it_was_given(kind: type[Peer]) -> None:
    peer = kind()
    if not is_here(peer.needs):
        pytest.skip(f"{peer.name} needs {', '.join(peer.needs)} in this environment")
    base, new = pair()
    for setting in peer.settings(UNIT):
        before = {name: w.copy() for name, w in new.items()}
        restored = peer.decode(peer.encode(new, base, setting), base)
        assert list(restored) == list(new)
        for name, weights in new.items():
            assert np.array_equal(weights, before[name]), f"{peer.name} changed its input"
            assert (restored[name].dtype, restored[name].shape) == (weights.dtype, weights.shape)
            exact = peer.lossless or weights.dtype != np.float32
            # Rounding of the sum may take a value past the bound by a unit in the last place.
            limit = 0.0 if exact else 1.001 * setting.get("abs", 0.05)
            if peer.prunes and not exact:
                limit = 2 * float(np.abs(weights).max())
            assert np.abs(restored[name].astype(np.float64) - weights).max() <= limit


def test_peers_have_names_of_their_own() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)


def test_every_method_of_the_package_is_in_the_bench() -> None:
    assert {kind.method for kind in METHODS if hasattr(kind, "method")} == set(nz.methods())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells")
def test_what_a_child_process_computes_counts() -> None:
    pytest.importorskip("pysz")
    from experiments.lab.peers import worker

    values = {"w": np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)}
    nz.compress(values, method="sz3")  # the child is there
    before = worker._children_seconds()
    nz.compress(values, method="sz3")
    assert worker._children_seconds() > before > 0


def test_bits_at_a_divergence_are_read_off_the_envelope() -> None:
    sweep = [
        {"kl": 1e-4, "bits_per_parameter": 4.0},
        {"kl": 5e-4, "bits_per_parameter": 9.0},
        {"kl": 1e-2, "bits_per_parameter": 1.0},
        {"kl": 0.0, "bits_per_parameter": 20.0},
    ]
    assert bits_at(sweep, 1e-3) == pytest.approx(2.0)
    assert bits_at(sweep, 1e-5) is None
    halved = [p | {"bits_per_parameter": p["bits_per_parameter"] / 2} for p in sweep]
    assert gap(sweep, halved, 1e-3) == pytest.approx(2.0)


def test_a_flat_checkpoint_comes_together_again() -> None:
    _, new = pair()
    flat = Flat.of(new)
    header, rest, payload = Flat.unpack(flat.pack(flat.floats.tobytes()))
    restored = Flat(header, np.frombuffer(payload, np.float32), rest).tensors()
    assert all(np.array_equal(restored[name], w) for name, w in new.items())


@pytest.mark.parametrize(("n_values", "n"), list(product((1, 3, 15, 16, 1000), (1, 15))))
def test_k_means_gives_ascending_centres_within_the_values(n_values: int, n: int) -> None:
    values = np.random.default_rng(n_values).normal(size=n_values).astype(np.float32)
    centres = k_means(values, n)
    assert 1 <= centres.size <= n
    assert (np.diff(centres) > 0).all()
    assert values.min() <= centres[0] <= centres[-1] <= values.max()


def test_divergence_of_a_network_from_itself_is_zero() -> None:
    pytest.importorskip("torch")
    from experiments.lab.evaluate import Evaluator, characters
    from experiments.lab.networks import NETWORKS

    alphabet = "".join(chr(48 + i) for i in range(65))
    text = "".join(np.random.default_rng(0).choice(list(alphabet), 20_000)) + alphabet
    original = {name: w.numpy() for name, w in NETWORKS["transformer"]().state_dict().items()}
    judge = Evaluator("transformer", original, characters(text, batches=1, rows=2))
    same = judge.compare(original)
    assert (same.kl, same.agreement, same.loss_change, same.accuracy_change) == (0, 1, 0, 0)
    other = judge.compare(original | {"h.weight": original["h.weight"] + np.float32(0.1) * original["h.weight"]})
    assert other.kl > 0


def test_chunks_are_found_again_behind_an_insertion() -> None:
    base = np.random.default_rng(0).bytes(1 << 20)
    new = base[:300_000] + b"more" + base[300_000:]
    assert b"".join(chunks.chunks(new)) == new
    sizes = np.diff([0, *chunks.ends(new)])
    assert sizes.max() <= chunks.LONGEST
    assert sizes[:-1].min() >= chunks.SHORTEST
    moved = chunks.transfer(new, base)
    assert 1 <= moved.n_new_chunks <= 2 < moved.n_chunks
    assert moved.n_bytes <= moved.n_new_chunks * chunks.LONGEST
    assert chunks.transfer(base, base).n_bytes == 0


def test_chunks_of_whole_bytes_are_compressed() -> None:
    values = np.random.default_rng(0).integers(0, 9, 1 << 16).astype(np.float32)
    assert chunks.transfer(values.tobytes(), b"").n_bytes < values.nbytes / 2
