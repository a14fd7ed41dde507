"""What comes in from other libraries, what goes out to PyTorch, and errors that Python's own handlers understand."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.tensors import DTYPES


class Foreign:
    """An array as JAX and TensorFlow have them."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


class ByDlpack:
    def __init__(self, values):
        self._values = values

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


# ---- in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.int64, ml_dtypes.bfloat16])
def test_arrays_of_other_libraries(dtype):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    archive = nz.compress({"w": Foreign(values)}, base={"w": Foreign(values)})
    assert archive.restored["w"].dtype == values.dtype
    assert np.array_equal(archive.restored["w"], values)


def test_arrays_by_dlpack():
    values = np.arange(12, dtype=np.float32)
    assert np.array_equal(nz.compress({"w": ByDlpack(values)}).restored["w"], values)


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, None, "text", object()])
def test_what_is_no_array_is_refused_by_name(value):
    with pytest.raises(errors.UsageError, match=r"tensor 'w' is a .*not an array"):
        nz.compress({"w": value})


def test_arrays_that_cannot_be_had_are_refused_by_name():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("it was donated")

    with pytest.raises(errors.UsageError, match="'w', a Broken, does not become a NumPy array: it was donated"):
        nz.compress({"w": Broken()})
    with pytest.raises(errors.UsageError, match="dtype object"):
        nz.compress({"w": Foreign(np.array([object()]))})


def test_trees_are_flattened_with_dots():
    tree = {"params": {"dense": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "empty": {}}, "step": np.array(3)}
    restored = nz.decompress(nz.compress(tree).to_bytes())
    assert list(restored) == ["params.dense.kernel", "params.dense.bias", "step"]
    with pytest.raises(errors.UsageError, match=r"two tensors are called 'a\.b'"):
        nz.compress({"a": {"b": np.ones(2)}, "a.b": np.ones(2)})
    endless: dict = {}
    endless["a"] = endless
    with pytest.raises(errors.UsageError, match="nested more than 100"):
        nz.compress(endless)


# ---- out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
def test_tensors_out_have_the_dtype_shape_and_bits(name, shape, tmp_path):
    torch = pytest.importorskip("torch")
    values = np.ones(shape, DTYPES[name])
    archive = nz.compress({"w": values, "tied": values.copy()})
    store = nz.Store(tmp_path / "store", create=True)
    store.commit({"w": values})
    with nz.open(archive, framework="pt") as reader:
        found = [reader["w"], dict(reader.items())["tied"], nz.decompress(archive, framework="pt")["tied"],
                 store.checkout(framework="pt")["w"]]  # fmt: skip
        assert isinstance(reader.array("w"), np.ndarray)
    for tensor in found:
        assert tensor.dtype == getattr(torch, name)
        assert tuple(tensor.shape) == shape
        assert tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == values.tobytes()


def test_a_state_dict_round_trip():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)).to(torch.bfloat16)
    restored = nz.decompress(nz.compress(net.state_dict()).to_bytes(), framework="pt")
    assert all(torch.equal(value, restored[name]) for name, value in net.state_dict().items())
    net.load_state_dict(restored)


def test_tensors_share_the_decoded_memory():
    torch = pytest.importorskip("torch")
    from nearzip.frameworks import to_framework

    array = np.arange(6, dtype=np.float32)
    tensor = to_framework(array, "pt")
    tensor[0] = 7
    assert array[0] == 7
    array.flags.writeable = False
    copy = to_framework(array, "pt")
    copy[0] = 1
    assert array[0] == 7
    assert isinstance(copy, torch.Tensor)


def test_frameworks_that_are_not_known():
    data = nz.compress({"w": np.ones(3)}).to_bytes()
    with pytest.raises(errors.UsageError, match="framework is 'np'"):
        nz.decompress(data, framework="tf")
    assert isinstance(nz.decompress(data, framework="np")["w"], np.ndarray)


# ---- errors ----------------------------------------------------------------------------------------------------


def test_a_reader_is_a_mapping():
    with nz.open(nz.compress({"w": np.zeros(4, np.float32)}).to_bytes()) as reader:
        assert reader.get("nope") is None
        assert reader.get("nope", "default") == "default"
        assert "nope" not in reader
        assert list(reader.keys()) == ["w"]
        assert [name for name, _ in reader.items()] == ["w"]
        with pytest.raises(KeyError):
            reader["nope"]


def test_errors_are_pythons_own_as_well(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nz: no such file"):
        nz.open(tmp_path / "gone.nz")
    with pytest.raises(FileNotFoundError):
        nz.compress(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="cannot read the bound"):
        nz.compress({"w": np.ones(3)}, bound="nope")
    with pytest.raises(KeyError):
        nz.Store("memory://own-errors", create=True).checkout("tag:nope")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_shows_its_message_as_it_is(name):
    error = getattr(errors, name)("a: 'b' \n c")
    assert str(error) == "a: 'b' \n c"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (our own)
    made = type(error).__new__(type(error), *error.args)  # as tblib does, which Dask pickles exceptions with
    assert (type(made), made.args) == (type(error), error.args)


# ---- notebooks -------------------------------------------------------------------------------------------------


def test_notebooks_show_escaped_tables():
    archive = nz.compress({"<b>": np.ones(3)}, base={"<b>": np.zeros(3)})
    store = nz.Store("memory://<i>notebook", create=True)
    with nz.open(archive, base={"<b>": np.zeros(3)}) as reader, store:
        for shown in (archive, reader, store):
            text = shown._repr_html_()
            assert text.startswith("<table>")
            assert "<b>" not in text
            assert "<i>" not in text
