"""Names that scripts outside the repository rely on. A failure here is a broken promise, not a test to be mended."""

from __future__ import annotations

import inspect

import pytest

import nearzip as nz
from nearzip import errors

NAMES = {
    "Absolute", "Archive", "Bound", "Comparison", "Hold", "Limits", "Lossless", "Plan", "PointwiseRelative", "Reader",
    "Relative", "Rms", "Store", "Update", "__version__", "compare", "compress", "compress_file", "decompress",
    "decompress_file", "errors", "methods", "open", "pull", "tune",
}  # fmt: skip

#: Parameters that may be given by position, in this order; more may follow by keyword.
POSITIONAL = {
    nz.compress: ["tensors", "base", "method", "bound", "plan", "options"],
    nz.decompress: ["archive", "base", "limits"],
    nz.open: ["archive", "base", "limits"],
    nz.compress_file: ["src", "dst", "base", "method", "bound", "plan", "options"],
    nz.decompress_file: ["src", "dst", "base", "limits"],
    nz.methods: [],
    nz.compare: ["a", "b"],
    nz.Lossless: [],
    nz.Absolute: ["value"],
    nz.Relative: ["value"],
    nz.PointwiseRelative: ["value"],
    nz.Rms: ["value"],
    nz.Update: ["value", "per"],
    nz.Archive.save: ["self", "path", "force"],
    nz.Archive.to_bytes: ["self"],
    nz.Store: ["url", "create", "bound", "policy", "method", "options"],
    nz.Store.commit: ["self", "tensors", "message", "metrics", "tags", "step"],
    nz.Store.checkout: ["self", "selector", "names"],
    nz.Store.prune: ["self", "keep", "drop"],
    nz.Store.verify: ["self", "level", "subset", "max_duration"],
    nz.pull: ["url", "to", "selector"],
    nz.Limits: ["output_bytes", "index_bytes", "tensors", "rank", "name_bytes", "depth"],
}
KEYWORDS = {
    nz.compress: {"metadata", "threads", "progress"},
    nz.decompress: {"threads", "progress"},
    nz.open: {"threads"},
    nz.compare: {"bits", "progress"},
    nz.Store: {"storage_options", "exclusive", "hold", "limits", "threads"},
    nz.Store.commit: {"metadata", "timeout", "progress"},
    nz.pull: {
        "force",
        "dry_run",
        "connections",
        "max_download",
        "storage_options",
        "limits",
        "threads",
        "progress",
    },
    nz.compress_file: {"restored", "force", "threads", "progress"},
    nz.decompress_file: {"keep_going", "force", "threads", "progress"},
}
DEFAULTS = {
    nz.compress: {"base": None, "method": "nearzip", "bound": None, "plan": None, "options": None},
    nz.decompress: {"base": None, "limits": None},
    nz.compress_file: {"base": None, "method": "nearzip", "bound": None, "force": False},
    nz.decompress_file: {"base": None, "keep_going": False, "force": False},
}
EXIT_CODES = {
    "Error": 3, "UsageError": 2, "NotFoundError": 10, "BusyError": 11, "CorruptError": 12, "TruncatedError": 12,
    "NewerFormatError": 13, "LimitError": 14, "BoundError": 15, "BudgetError": 15, "WrongBaseError": 3,
    "UnknownMethodError": 3, "StoreError": 3, "NoSpaceError": 3, "MissingExtraError": 3,
}  # fmt: skip
METHODS = {
    "nearzip", "delta-dnn", "qd-compressor", "lc-checkpoint", "sz3", "zfp", "blosc", "gzip", "zstd", "lzma",
}  # fmt: skip


def test_public_names_stay():
    assert set(nz.__all__) >= NAMES
    assert all(hasattr(nz, name) for name in nz.__all__)


def test_there_are_no_other_public_names():
    assert set(nz.__all__) == NAMES, "a new public name is added here on purpose"


@pytest.mark.parametrize("function", POSITIONAL, ids=lambda f: f.__qualname__)
def test_signatures_stay(function):
    parameters = inspect.signature(function).parameters
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONAL[function]
    by_keyword = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert by_keyword >= KEYWORDS.get(function, set())
    for name, default in DEFAULTS.get(function, {}).items():
        assert parameters[name].default == default


def test_members_of_the_contract():
    for name in ("nbytes", "ratio", "id", "base_id"):
        assert isinstance(getattr(nz.Archive, name), property)
    for name in ("keys", "items", "values", "get", "metadata", "close", "__enter__", "__exit__", "__getitem__"):
        assert hasattr(nz.Reader, name)
    assert isinstance(nz.__version__, str)


def test_errors_and_exit_codes_stay():
    assert set(errors.__all__) >= set(EXIT_CODES)
    for name, code in EXIT_CODES.items():
        error = getattr(errors, name)
        assert issubclass(error, errors.Error)
        assert error.exit_code == code, name
    assert issubclass(errors.TruncatedError, errors.CorruptError)
    for name in errors.__all__:
        assert f"{name} (" in errors.__doc__, f"{name} is missing from the tree in the docstring"


def test_methods_stay_and_describe_themselves():
    methods = nz.methods()
    assert set(methods) >= METHODS
    assert next(iter(methods)) == "nearzip"
    for name, summary in methods.items():
        assert summary, name
        assert "\n" not in summary


def test_unknown_methods_and_options_are_named():
    x = {"x": [1.0]}
    with pytest.raises(errors.UnknownMethodError, match="unknown method 'nope'; known are nearzip"):
        nz.compress(x, method="nope")
    with pytest.raises(errors.UsageError, match="'delta-dnn' has no option 'nope'; it takes eps"):
        nz.compress(x, method="delta-dnn", options={"nope": 1})
    with pytest.raises(errors.UsageError, match="plan"):
        nz.compress(x, plan=object())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("delta-dnn", {"eps": "x"}),
        ("delta-dnn", {"eps": True}),
        ("delta-dnn", {"eps": [1]}),
        ("delta-dnn", {"eps": float("nan")}),
        ("delta-dnn", {"eps": 0}),
        ("delta-dnn", {"mode": "both"}),
        ("delta-dnn", {"backend": "rar"}),
        ("zstd", {"level": 2.7}),
        ("zstd", {"level": float("inf")}),
        ("zstd", {"level": None}),
        ("zstd", {"level": 99}),
        ("gzip", {"level": -1}),
        ("lzma", {"preset": 10}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(method, options):
    import numpy as np

    with pytest.raises(errors.UsageError):
        nz.compress({"x": np.ones(3)}, method=method, options=options)


def test_options_as_the_command_line_gives_them():
    import numpy as np

    archive = nz.compress({"x": np.ones(3)}, method="delta-dnn", options={"eps": "1e-3", "backend": "zstd"})
    assert archive.report.index.method == {
        "name": "delta-dnn",
        "options": {"eps": 1e-3, "mode": None, "backend": "zstd"},
    }
