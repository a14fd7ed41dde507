"""ONNX Runtime and gguf read what comes back: the same bits without a bound, and with one within what it implies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nearzip as nz

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(40, 30)).astype("f4"), RNG.normal(size=30).astype("f4")
V = RNG.normal(size=(30, 20)).astype("f4")
X = RNG.normal(size=(7, 40)).astype("f4")


def there_and_back(path: Path, **how) -> Path:
    restored = path.with_name(f"restored-{path.name}")
    nz.compress_file(path, path.parent / "a.nz", force=True, **how)
    nz.decompress_file(path.parent / "a.nz", restored, force=True, base=how.get("base"))
    return restored


# ---- ONNX ------------------------------------------------------------------------------------------------------


def write_onnx(path: Path, w: np.ndarray, external: bool = False) -> Path:
    """A network of two layers, y = relu(x w + b) v, with a constant in a node."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    constant = helper.make_node("Constant", [], ["v"], value=onnx.numpy_helper.from_array(V, "v"))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        constant,
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, floats, shape) for name, shape in (("x", (None, 40)), ("y", (None, 20)))
    ]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", w), ("b", B))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    how = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 100} if external else {}
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(model, path, **how)
    return path


def outputs(path: Path) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def largest_change(e: float) -> float:
    """What a change of every weight by up to `e` can do to an output."""
    h = np.abs(X) @ np.abs(W) + np.abs(B)
    dh = e * (np.abs(X).sum(1, keepdims=True) + 1)
    return float((dh @ np.ones((1, 30)) @ (np.abs(V) + e) + e * h @ np.ones((30, 20))).max())


def test_onnx_runtime_gives_the_same_bits(tmp_path):
    path = write_onnx(tmp_path / "net.onnx", W)
    assert np.array_equal(outputs(there_and_back(path)), outputs(path))


@pytest.mark.parametrize("e", [1e-2, 1e-4])
def test_onnx_runtime_within_what_the_bound_implies(tmp_path, e):
    path = write_onnx(tmp_path / "net.onnx", W)
    difference = np.abs(outputs(there_and_back(path, bound=f"abs:{e}")) - outputs(path)).max()
    assert 0 < difference <= largest_change(e) + 1e-4


def test_onnx_with_external_data_runs(tmp_path):
    path = write_onnx(tmp_path / "net" / "net.onnx", W, external=True)
    assert (path.parent / "weights.data").stat().st_size >= W.nbytes
    restored = there_and_back(path.parent)
    assert np.array_equal(outputs(restored / "net.onnx"), outputs(path))
    near = there_and_back(path.parent, bound="abs:0.001")
    assert 0 < np.abs(outputs(near / "net.onnx") - outputs(path)).max() <= largest_change(1e-3) + 1e-4


def test_an_update_of_onnx(tmp_path):
    old = write_onnx(tmp_path / "old.onnx", W)
    new = write_onnx(tmp_path / "new.onnx", W + np.float32(1e-3) * RNG.normal(size=W.shape).astype("f4"))
    restored = there_and_back(new, base=old, bound="upd:0.01")
    n_update = (tmp_path / "a.nz").stat().st_size
    assert np.abs(outputs(restored) - outputs(new)).max() < np.abs(outputs(old) - outputs(new)).max() / 5
    there_and_back(new, bound="lossless")
    assert n_update < (tmp_path / "a.nz").stat().st_size / 2


# ---- GGUF ------------------------------------------------------------------------------------------------------


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A file with floats and quantized tensors; returns their values as gguf dequantizes them."""
    gguf = pytest.importorskip("gguf")
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    values = RNG.normal(size=(16, 256)).astype("f4")
    writer.add_tensor("floats", values)
    writer.add_tensor("halves", values.astype("f2"))
    writer.add_tensor("norm", np.ones(16, "f4"))
    for kind in ("Q8_0", "Q4_0", "Q5_1", "BF16"):
        data = gguf.quants.quantize(values, types[kind])
        writer.add_tensor(kind, data, raw_dtype=types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    gguf = pytest.importorskip("gguf")
    tensors = gguf.GGUFReader(path).tensors
    return {each.name: np.array(gguf.quants.dequantize(each.data, each.tensor_type)) for each in tensors}


def test_gguf_gives_the_same_bits(tmp_path):
    values = write_gguf(tmp_path / "a.gguf")
    restored = there_and_back(tmp_path / "a.gguf")
    assert restored.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    found = read_gguf(restored)
    assert all(np.array_equal(array, found[name]) for name, array in values.items())


def test_gguf_within_a_bound(tmp_path):
    values = write_gguf(tmp_path / "a.gguf")
    found = read_gguf(there_and_back(tmp_path / "a.gguf", bound="abs:0.01"))
    for name, array in values.items():
        difference = np.abs(array.astype("f8") - found[name]).max()
        assert difference <= 0.01 if name in ("floats", "halves", "norm", "BF16") else difference == 0, name
    assert not np.array_equal(values["floats"], found["floats"])
