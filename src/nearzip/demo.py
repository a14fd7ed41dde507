"""A real network, trained, compressed after every epoch, and restored in another process: `nearzip demo`.

Training, data and scores come from scikit-learn. Every version is coded against the version before as a reader restored
it; a new process restores the last one from only the files.
"""

from __future__ import annotations

import copy
import gzip
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearzip.api import compress_quietly, decompress
from nearzip.bounds import Absolute, Bound, Lossless
from nearzip.checkpoints import open_checkpoint, write_checkpoint
from nearzip.comparison import compare
from nearzip.errors import BoundError, CorruptError, Error, NotFoundError, missing_extra
from nearzip.fileio import atomic_file, check_free, naming_errors
from nearzip.plots import import_figure, save_figure
from nearzip.tensors import Array, Checkpoint
from nearzip.version import __version__

__all__ = ["BOUND", "DemoReport", "MethodReport", "restore_chain", "run_demo"]

Tensors = dict[str, Array]
#: Called with the number of steps done, the number of all steps, and a description of the next one.
Progress = Callable[[int, int, str], None]

#: Delta-DNN's own choice in its section 5.1.
BOUND = Absolute(1e-3)
_SEED = 0
_RESTORE = "import sys; from nearzip.demo import restore_chain; restore_chain(sys.argv[1], sys.argv[2:])"


@dataclass(frozen=True)
class _Contender:
    """One line of the table."""

    label: str
    method: str
    bound: Bound | None

    @property
    def folder(self) -> str:
        return self.label.replace(" ", "-")


_CONTENDERS = (
    _Contender("nearzip", "nearzip", BOUND),
    _Contender("delta-dnn", "delta-dnn", BOUND),
    _Contender("nearzip lossless", "nearzip", Lossless()),
    _Contender("lzma", "lzma", None),
    _Contender("zstd", "zstd", None),
)


@dataclass
class MethodReport:
    """Results of one method on all versions.

    Attributes
    ----------
    n_bytes : list of int
        Of each version's file.
    accuracy : list of float
        Of each restored version, on held-out data.
    worst_error : float
        Largest |original - restored| of all versions.
    bound : float
        What was promised; 0 for lossless.
    """

    label: str
    method: str
    bound: float
    n_bytes: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    worst_error: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def total_bytes(self) -> int:
        return sum(self.n_bytes)


@dataclass
class DemoReport:
    """All results of the demo."""

    data: str
    layers: list[int]
    n_parameters: int
    n_train: int
    n_test: int
    version_bytes: int
    accuracy: list[float]
    train_seconds: float
    methods: list[MethodReport]
    output: str
    machine: str = field(default_factory=lambda: f"{platform.machine()}, Python {platform.python_version()}")
    nearzip: str = __version__

    @property
    def total_bytes(self) -> int:
        return self.version_bytes * len(self.accuracy)

    def ratio(self, method: MethodReport) -> float:
        return self.total_bytes / method.total_bytes

    def to_json(self) -> dict[str, Any]:
        methods = [
            {**asdict(m), "total_bytes": m.total_bytes, "ratio": self.ratio(m), "restored_exactly": True}
            for m in self.methods
        ]
        return {**asdict(self), "total_bytes": self.total_bytes, "methods": methods}


def run_demo(
    output: str | Path,
    data: str | Path | None = None,
    epochs: int | None = None,
    *,
    force: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> DemoReport:
    """Train, compress every epoch, restore the last one in a new process, check, draw.

    Parameters
    ----------
    output : path
        Folder for the archives, demo.png and demo.json; made if it is not there.
    data : path or None
        A folder with MNIST as .gz files (also below raw/ or MNIST/raw/): LeNet-300-100. None: scikit-learn's 8 x 8
        digits and a 64-256-128-10 network.
    epochs : int or None
        Versions. None: 20 for the digits, 10 for MNIST.

    Raises
    ------
    MissingExtraError
        scikit-learn or matplotlib is not installed.
    NotFoundError, CorruptError
        `data` holds no MNIST, or a damaged one.
    BoundError, CorruptError
        A bound was missed, or a restored bit differs.
    """
    figure = import_figure("demo", "the demo")
    folder = _prepare(Path(output), force)
    task = _mnist(Path(data)) if data is not None else _digits()
    epochs = epochs or task.epochs
    steps = _Steps(epochs * (1 + len(_CONTENDERS)) + len(_CONTENDERS), progress)
    started = time.perf_counter()
    versions = list(_train(task, epochs, steps))
    report = DemoReport(
        data=task.name,
        layers=[task.x_train.shape[1], *task.hidden, 10],
        n_parameters=sum(array.size for array in versions[0].values()),
        n_train=len(task.x_train),
        n_test=len(task.x_test),
        version_bytes=sum(array.nbytes for array in versions[0].values()),
        accuracy=[task.accuracy(version) for version in versions],
        train_seconds=time.perf_counter() - started,
        methods=[],
        output=str(output),
    )
    for contender in _CONTENDERS:
        report.methods.append(_contest(contender, versions, task, folder, steps))
    save_figure(_draw(figure, report), folder / "demo.png", force)
    with atomic_file(folder / "demo.json", force) as stream:
        stream.write(json.dumps(report.to_json(), indent=2).encode() + b"\n")
    return report


class _Steps:
    """Counts steps and reports the next one."""

    def __init__(self, total: int, progress: Progress):
        self._total, self._done, self._progress = total, 0, progress

    def begin(self, what: str) -> None:
        self._progress(self._done, self._total, what)
        self._done += 1


def _prepare(folder: Path, force: bool) -> Path:
    """Create the folder. An earlier demo in it is an error, or with `force` it is removed."""
    with naming_errors("make", folder):
        folder.mkdir(exist_ok=True)
        for name in ("demo.png", "demo.json"):
            check_free(folder / name, force)
        for contender in _CONTENDERS:
            versions = folder / contender.folder
            versions.mkdir(exist_ok=True)
            for old in versions.glob("epoch-*.nz"):
                check_free(old, force)
                old.unlink()
    return folder


# ---- data and training -----------------------------------------------------------------------------------------


def _sklearn(module: str) -> Any:
    try:
        return __import__(f"sklearn.{module}", fromlist=["_"])
    except ImportError:
        raise missing_extra("scikit-learn", "demo", "the demo") from None


@dataclass
class _Task:
    """Data, and the network that is trained on it."""

    name: str
    hidden: tuple[int, ...]
    batch: int
    epochs: int
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    network: Any = None

    def accuracy(self, tensors: Tensors) -> float:
        """Accuracy on held-out data."""
        network = copy.copy(self.network)
        n = len(self.hidden) + 1
        network.coefs_ = [tensors[f"layer{i}.weight"] for i in range(n)]
        network.intercepts_ = [tensors[f"layer{i}.bias"] for i in range(n)]
        return float(network.score(self.x_test, self.y_test))


def _digits() -> _Task:
    x, y = _sklearn("datasets").load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    split = _sklearn("model_selection").train_test_split(x, y, test_size=0.25, random_state=_SEED, stratify=y)
    return _Task("scikit-learn digits, 8 x 8", (256, 128), 64, 20, split[0], split[2], split[1], split[3])


def _mnist(folder: Path) -> _Task:
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        if (place / "train-images-idx3-ubyte.gz").is_file():
            break
    else:
        raise NotFoundError(f"{folder}: no train-images-idx3-ubyte.gz here or in MNIST/raw; give MNIST's folder")
    x_train, y_train = _read_idx(place / "train-images-idx3-ubyte.gz"), _read_idx(place / "train-labels-idx1-ubyte.gz")
    x_test, y_test = _read_idx(place / "t10k-images-idx3-ubyte.gz"), _read_idx(place / "t10k-labels-idx1-ubyte.gz")

    def pixels(images: Array) -> Array:
        scaled: Array = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
        return scaled

    return _Task("MNIST", (300, 100), 128, 10, pixels(x_train), y_train, pixels(x_test), y_test)


def _read_idx(path: Path) -> Array:
    """An array in MNIST's format: two zeros, type 8, rank, sizes in big endian, bytes."""
    with naming_errors("read", path):
        try:
            data = gzip.decompress(path.read_bytes())
            shape = np.frombuffer(data, ">u4", data[3], 4)
            if data[:3] != b"\0\0\x08":
                raise ValueError("not the IDX format")
            array: Array = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape.astype(int))
        except (ValueError, EOFError, IndexError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptError(f"{path}: not a readable IDX file: {error}; fetch MNIST again") from None
    return array


def _one_blas_thread() -> Any:
    """These products are small: on two busy cores a second thread made training 2 to 8 times slower."""
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, so it is there

    return threadpool_limits(1)


def _train(task: _Task, epochs: int, steps: _Steps) -> Iterator[Tensors]:
    """The network after each epoch."""
    task.network = _sklearn("neural_network").MLPClassifier(task.hidden, batch_size=task.batch, random_state=_SEED)
    classes = np.arange(10)
    for epoch in range(epochs):
        steps.begin(f"train, epoch {epoch + 1} of {epochs}")
        with warnings.catch_warnings(), _one_blas_thread():
            warnings.simplefilter("ignore")
            task.network.partial_fit(task.x_train, task.y_train, classes=classes)
        pairs = zip(task.network.coefs_, task.network.intercepts_, strict=True)
        yield {
            f"layer{i}.{kind}": np.array(array, np.float32, order="C")
            for i, pair in enumerate(pairs)
            for kind, array in zip(("weight", "bias"), pair, strict=True)
        }


# ---- compressing and restoring ---------------------------------------------------------------------------------


def _contest(
    contender: _Contender, versions: Sequence[Tensors], task: _Task, folder: Path, steps: _Steps
) -> MethodReport:
    """Compress every version against the restored version before it, restore it, and check it."""
    bound = contender.bound.value if isinstance(contender.bound, Absolute) else 0.0
    report = MethodReport(contender.label, contender.method, bound)
    paths = []
    held: Tensors | None = None
    for epoch, version in enumerate(versions):
        steps.begin(f"{contender.label}, version {epoch + 1} of {len(versions)}")
        started = time.perf_counter()
        archive = compress_quietly(version, held, contender.method, contender.bound)
        report.encode_seconds += time.perf_counter() - started
        paths.append(folder / contender.folder / f"epoch-{epoch:03d}.nz")
        archive.save(paths[-1])
        held = archive.restored
        report.n_bytes.append(archive.nbytes)
        report.accuracy.append(task.accuracy(held))
        report.worst_error = max(report.worst_error, compare(version, held).total.max_abs_error)
    steps.begin(f"{contender.label}, restore in a new process")
    report.decode_seconds = _check_restored(contender.label, paths, held or {})
    if report.worst_error > report.bound:
        raise BoundError(f"{contender.label}: an error of {report.worst_error} exceeds the bound {report.bound}")
    return report


def _check_restored(label: str, paths: Sequence[Path], expected: Tensors) -> float:
    """Restore the last version in a new process, from only the files. Returns the seconds that decoding took there."""
    with tempfile.TemporaryDirectory() as scratch:
        restored = Path(scratch, "restored.safetensors")
        command = [sys.executable, "-c", _RESTORE, str(restored), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours, no shell
        if done.returncode:
            raise Error(f"{label}: the restoring process failed: {done.stderr.strip().splitlines()[-1]}")
        checkpoint = open_checkpoint(restored)
        identical = compare(checkpoint, expected).identical
        checkpoint.close()
        if not identical:
            raise CorruptError(f"{label}: what a new process restored differs from what the encoder promised")
    return float(json.loads(done.stdout)["seconds"])


def restore_chain(output: str, archives: Sequence[str]) -> None:
    """Decode archives, each the base of the next, and write the last; print the seconds that decoding took."""
    tensors: Tensors | None = None
    started = time.perf_counter()
    for archive in archives:
        tensors = decompress(archive, tensors)
    seconds = time.perf_counter() - started
    last = Checkpoint.of(tensors or {})
    with write_checkpoint(output, last.specs) as writer:
        for name, array in last.arrays():
            writer.write(name, array)
    sys.stdout.write(json.dumps({"seconds": seconds}))


# ---- the picture -----------------------------------------------------------------------------------------------

_STYLES = {
    "nearzip": ("tab:blue", "o"),
    "delta-dnn": ("tab:orange", "s"),
    "nearzip lossless": ("tab:green", "^"),
    "lzma": ("tab:red", "v"),
    "zstd": ("tab:purple", "x"),
}


def _draw(figure_type: Any, report: DemoReport) -> Any:
    figure = figure_type(figsize=(11, 4.6), layout="constrained")
    sizes, accuracies = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_sizes(sizes, report)
    _draw_accuracy(accuracies, report)
    network = "-".join(map(str, report.layers))
    figure.suptitle(f"{report.data}: a {network} network ({report.n_parameters:,} parameters) after every epoch")
    return figure


def _epochs(report: DemoReport) -> list[int]:
    return list(range(1, len(report.accuracy) + 1))


def _draw_sizes(axes: Any, report: DemoReport) -> None:
    epochs = _epochs(report)
    axes.axhline(report.version_bytes / 1000, color="0.4", linestyle="--", label="uncompressed")
    for method in report.methods:
        color, marker = _STYLES[method.label]
        kilobytes = [n / 1000 for n in method.n_bytes]
        label = f"{_described(method)}: {report.ratio(method):.1f}x smaller in all"
        axes.plot(epochs, kilobytes, color=color, marker=marker, markersize=4, linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_yticks([n for k in range(-1, 5) for n in (10**k, 2 * 10**k, 5 * 10**k)], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    sizes = [n / 1000 for method in report.methods for n in method.n_bytes]
    axes.set_ylim(0.8 * min(sizes), 1.25 * max(*sizes, report.version_bytes / 1000))
    axes.set_xlabel("epoch")
    axes.set_ylabel("size of the file, kB (log scale)")
    axes.set_title("Size of each version")
    axes.grid(axis="y", which="major", alpha=0.3)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _described(method: MethodReport) -> str:
    return f"{method.label}, error at most {method.bound:g}" if method.bound else method.label


def _draw_accuracy(axes: Any, report: DemoReport) -> None:
    epochs = _epochs(report)
    trained = [100 * value for value in report.accuracy]
    axes.plot(epochs, trained, color="0.75", linewidth=6, solid_capstyle="round", label="as trained")
    for method in report.methods:
        if not method.bound:
            continue
        color, marker = _STYLES[method.label]
        label = f"restored from {method.label}"
        restored = [100 * value for value in method.accuracy]
        axes.plot(epochs, restored, color=color, marker=marker, markersize=4, linewidth=1, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on held-out data, %")
    axes.set_title("What it costs in accuracy")
    axes.grid(axis="y", alpha=0.3)
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="lower right", frameon=False)
