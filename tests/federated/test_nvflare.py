"""The filters for NVIDIA FLARE: over its own classes where it is installed, else over a double of the two it names."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import BoundError, CorruptError, Error, LimitError, UsageError


def double():
    """`nvflare.apis.dxo` and `nvflare.apis.dxo_filter` as far as filters use them."""
    dxo, filters = types.ModuleType("nvflare.apis.dxo"), types.ModuleType("nvflare.apis.dxo_filter")

    class DXO:
        def __init__(self, data_kind, data, meta=None):
            self.data_kind, self.data, self.meta = data_kind, data, {} if meta is None else meta

        def get_meta_prop(self, key, default=None):
            return self.meta.get(key, default)

        def set_meta_prop(self, key, value):
            self.meta[key] = value

        def remove_meta_props(self, keys):
            for key in keys:
                self.meta.pop(key, None)

    class DXOFilter:
        def __init__(self, supported_data_kinds, data_kinds_to_filter):
            self.data_kinds = data_kinds_to_filter or supported_data_kinds

    dxo.DXO, filters.DXOFilter = DXO, DXOFilter
    dxo.DataKind = type("DataKind", (), {"WEIGHT_DIFF": "WEIGHT_DIFF", "WEIGHTS": "WEIGHTS"})
    dxo.MetaKey = type(
        "MetaKey", (), {"PROCESSED_ALGORITHM": "PROCESSED_ALGORITHM", "FILTER_HISTORY": "filter_history"}
    )
    package, apis = types.ModuleType("nvflare"), types.ModuleType("nvflare.apis")
    return {"nvflare": package, "nvflare.apis": apis, "nvflare.apis.dxo": dxo, "nvflare.apis.dxo_filter": filters}


@pytest.fixture
def flare(monkeypatch):
    """`nearzip.nvflare` and FLARE's DXO."""
    try:
        import nvflare.apis.dxo  # noqa: F401
    except ImportError:
        for name, module in double().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "nearzip.nvflare", raising=False)
    import nearzip.nvflare

    yield nearzip.nvflare
    sys.modules.pop("nearzip.nvflare", None)


def difference(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.laplace(0, 1e-3, (80, 90)).astype(np.float32),
        "b": rng.laplace(0, 1e-3, 80).astype(np.float32),
        "layers[0].n": np.array(3),
    }


def test_a_difference_is_one_small_array_and_comes_back_within_its_bound(flare):
    given = flare.DXO("WEIGHT_DIFF", difference(), {"NUM_STEPS": 5})
    packed = flare.Compress().process_dxo(given, None, None)
    assert list(packed.data) == ["nearzip"]
    assert packed.data["nearzip"].nbytes < 80 * 90 / 8 + 700
    assert list(given.data) == list(difference())
    plain = flare.Decompress().process_dxo(packed, None, None)
    assert plain.meta.get("NUM_STEPS") == 5
    assert int(plain.data["layers[0].n"]) == 3
    rms = np.sqrt(np.mean(difference()["w"].astype(float) ** 2))
    assert np.abs(plain.data["w"] - difference()["w"]).max() <= 2 * rms * 1.0001
    assert np.abs(plain.data["b"] - difference()["b"]).max() <= rms / 4 * 1.0001


@pytest.mark.parametrize("method", ["nearzip", "topk", "stc"])
def test_what_is_left_out_comes_with_the_next(flare, method):
    compress, decompress = flare.Compress(method, residual="exact"), flare.Decompress()
    arrived = 0
    for _ in range(30):
        packed = compress.process_dxo(flare.DXO("WEIGHT_DIFF", difference()), None, None)
        arrived = arrived + decompress.process_dxo(packed, None, None).data["w"]
    wanted = 30 * difference()["w"]
    assert np.linalg.norm(arrived - wanted) < 0.95 * np.linalg.norm(wanted)
    left = compress._residual.load(["w"])["w"]
    assert np.abs(arrived + left - wanted).max() < 1e-5


def test_what_others_send_is_left_alone(flare):
    assert flare.Decompress().process_dxo(flare.DXO("WEIGHT_DIFF", difference()), None, None) is None


def test_nothing_is_compressed_twice(flare):
    packed = flare.Compress().process_dxo(flare.DXO("WEIGHT_DIFF", difference()), None, None)
    with pytest.raises(UsageError, match="compressed already"):
        flare.Compress().process_dxo(packed, None, None)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda data: {"nearzip": data[:-1]}, CorruptError),
        (lambda data: {"nearzip": data, "more": data}, CorruptError),
        (lambda data: {"nearzip": data.astype(np.float32)}, CorruptError),
        (lambda data: {"nearzip": "text"}, CorruptError),
        (lambda data: {"nearzip": np.zeros(0, np.uint8)}, CorruptError),
        (lambda data: {"nearzip": of({"w": np.full(9, np.nan, np.float32)})}, BoundError),
        (lambda data: {"nearzip": of({"w": np.zeros(1 << 20, np.float32)})}, LimitError),
    ],
)
def test_hostile_results_are_named(flare, make, error):
    packed = flare.Compress().process_dxo(flare.DXO("WEIGHT_DIFF", difference()), None, None)
    packed.data = make(packed.data["nearzip"])
    with pytest.raises(error):
        flare.Decompress(max_bytes=1 << 20).process_dxo(packed, None, None)


def of(tensors):
    return np.frombuffer(nz.compress(tensors).to_bytes(), np.uint8)


def test_wrong_options_show_where_the_filter_is_made(flare):
    with pytest.raises(UsageError):
        flare.Compress(bound="pwrel:0.1")
    with pytest.raises(Error):
        flare.Compress().process_dxo(flare.DXO("WEIGHT_DIFF", {"w": np.array([np.nan], np.float32)}), None, None)
