"""nearzip dataset: data sets in as few bytes as the accuracy allows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from nearzip.cli.console import (
    check_streams,
    facts,
    human_bytes,
    output_of,
    print_json,
    progress,
    rows_table,
    show,
    warn,
)
from nearzip.cli.running import OneLineGroup, common_options, showing_warnings
from nearzip.cli.transfer import force_option, size_of
from nearzip.errors import UsageError
from nearzip.fileio import check_outputs

__all__ = ["compress", "dataset", "export", "inspect"]

_FILE = click.Path(path_type=str)


@click.group(cls=OneLineGroup)
def dataset() -> None:
    """Store image data sets in as few bytes as the accuracy of a network allows.

    SOURCE is a folder of images, MNIST or CIFAR files, .npy, .npz, a WebDataset .tar, .parquet, or .nzd.
    """


def source_options(function: Any) -> Any:
    """How SOURCE is read."""
    for option in (
        click.option("--labels", metavar="NAME", help="The array or column of labels, if it has no usual name."),
        click.option("--images", metavar="NAME", help="The array or column of images, if it has no usual name."),
        click.option("--mode", type=click.Choice(["L", "LA", "RGB", "RGBA"]), help="Convert images to this mode."),
        click.option("--split", type=click.Choice(["train", "test"]), help="Of MNIST and CIFAR.  [default: train]"),
    ):
        function = option(function)
    return function


@dataset.command()
@click.argument("source", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, metavar="OUT.nzd", help="The file to write; - is stdout.")
@click.option("--codec", metavar="NAME:SETTING", help="Such as nearzip:20, jpeg:75,chroma=4:4:4 or bounded:abs:0.01.  "
              "[default: without loss]")  # fmt: skip
@click.option("--plan", type=_FILE, metavar="PLAN.json", help="The codec that 'nearzip dataset tune' found.")
@click.option("--group", type=click.IntRange(min=1), metavar="N", help="Samples of a group, which has one checksum.  "
              "[default: about 32 KiB]")  # fmt: skip
@click.option("--shards", type=click.IntRange(min=1), metavar="N", help="Write N files: OUT-00000-of-0000N.nzd ..")
@click.option("--shard-size", callback=size_of, metavar="SIZE", help="As many files as it takes for none to have more "
              "bytes of samples, such as 500MB.")  # fmt: skip
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that encode.")
@source_options
@force_option
@common_options
def compress(
    source: str,
    output: str,
    codec: str | None,
    plan: str | None,
    group: int | None,
    shards: int | None,
    shard_size: int | None,
    jobs: int,
    split: str | None,
    mode: str | None,
    images: str | None,
    labels: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Write SOURCE as a .nzd file, or several: single samples can be read, and are checked."""
    from nearzip.datasets import Plan, load, write
    from nearzip.datasets.workers import processes

    if codec is not None and plan is not None:
        raise click.UsageError("--plan says the codec; give one of --codec and --plan")
    on_stdout = check_streams(outputs=[output])
    check_outputs([output_of(output)], [source, plan], force)
    started = time.perf_counter()
    samples = load(source, split=split, mode=mode, images=images, labels=labels)
    with showing_warnings() as warned, progress("dataset compress", as_json, "samples") as watch, processes(jobs):
        written = write(
            output_of(output), samples, codec=codec, plan=None if plan is None else Plan.load(plan), group=group,
            shards=shards, shard_size=shard_size, force=force, progress=watch,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    document = {
        "output": output, "files": list(written.files), "codec": written.codec, "samples": written.n_samples,
        "bytes": written.n_bytes,
        "index_bytes": written.index_bytes, "bytes_per_sample": written.bytes_per_sample,
        "raw_bytes": written.raw_bytes, "shares": written.shares(), "seconds": seconds, "warnings": warned,
    }  # fmt: skip
    if as_json:
        print_json("dataset compress", document, err=on_stdout)
    else:
        show(_summary(output, written, seconds), err=on_stdout)
    return 1 if warned else 0


def _summary(output: str, written: Any, seconds: float) -> str:
    shares = ", ".join(f"{100 * share:.2f} % of {name}" for name, share in written.shares().items())
    return facts([
        ("wrote", output if len(written.files) < 2 else f"{written.files[0]} and {len(written.files) - 1} more"),
        ("samples", f"{written.n_samples} by {written.codec}"),
        ("size", f"{human_bytes(written.n_bytes)}, {written.bytes_per_sample:.1f} bytes a sample with container and "
                 f"index ({human_bytes(written.index_bytes)})"),
        ("share", shares),
        ("time", f"{seconds:.2f} s"),
    ])  # fmt: skip


@dataset.command()
@click.argument("file", type=_FILE, metavar="FILE.nzd")
@click.option("--verify", is_flag=True, help="Read and decode every sample.")
@common_options
def inspect(file: str, verify: bool, as_json: bool) -> int:
    """Show what a data set holds. Exit code 12 with --verify if anything in it is damaged."""
    from nearzip.datasets import open as open_dataset

    with open_dataset(file) as reader:
        wrong = reader.verify() if verify else []
        shares = {"raw": reader.n_bytes / reader.raw_bytes} if reader.raw_bytes else {}
        document = {
            "file": file, "files": reader.files, "shard": None if reader.shard is None else reader.shard.number,
            "samples": len(reader), "bytes": reader.n_bytes, "index_bytes": reader.index_bytes,
            "bytes_per_sample": reader.n_bytes / len(reader), "raw_bytes": reader.raw_bytes, "shares": shares,
            "codec": reader.codec.to_json(), "dtype": reader.spec.dtype, "channels": reader.spec.channels,
            "shape": reader.same_shape, "groups": reader.groups, "group_samples": reader.group_samples,
            "columns": list(reader.columns), "classes": list(reader.classes), "metadata": dict(reader.metadata),
            **({"damaged": wrong} if verify else {}),
        }  # fmt: skip
        if as_json:
            print_json("dataset inspect", document)
        else:
            show(_facts(document, str(reader.codec)))
            for line in wrong or reader.unreadable:
                warn(line)
    return 12 if wrong else 0


def _facts(d: Mapping[str, Any], codec: str) -> str:
    shape = "different shapes" if d["shape"] is None else " x ".join(map(str, d["shape"]))
    return facts([
        ("files", d["files"] if d["files"] > 1 else None),
        ("shard", d["shard"]),
        ("samples", f"{d['samples']}, {d['dtype']}, {shape}"),
        ("codec", codec),
        ("size", f"{human_bytes(d['bytes'])} of {human_bytes(d['raw_bytes'])}: {d['bytes_per_sample']:.1f} bytes a "
                 f"sample, {human_bytes(d['index_bytes'])} of index"),
        ("groups", f"{d['groups']} of {d['group_samples']} samples"),
        ("columns", ", ".join(d["columns"]) or None),
        ("classes", ", ".join(d["classes"]) or None),
        *((f"metadata {name}", value) for name, value in d["metadata"].items()),
        ("verified", None if "damaged" not in d else f"{len(d['damaged'])} damaged" if d["damaged"] else "all samples"),
    ])  # fmt: skip


@dataset.command()
@click.argument("file", type=_FILE, metavar="FILE.nzd")
@click.option("-o", "--output", required=True, type=_FILE, help="A folder, x.tar for WebDataset, or x.npz for arrays.")
@click.option("--format", "form", type=click.Choice(["png", "jpeg", "webp"]), default="png", show_default=True,
              help="Of image files.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of jpeg and webp.")
@force_option
@common_options
def export(file: str, output: str, form: str, quality: int, force: bool, as_json: bool) -> int:
    """Write the samples of a .nzd file in a form that other programs read."""
    from nearzip.datasets import export as write_out
    from nearzip.datasets import open as open_dataset

    if output == "-":
        raise UsageError("samples are exported to a folder, a .tar or an .npz, not to stdout; give -o a name")
    started = time.perf_counter()
    check_outputs([output], [file], force, folders=True)
    with open_dataset(file) as reader, progress("dataset export", as_json, "samples") as watch:
        n = write_out(reader, output, format=form, quality=quality, force=force, progress=watch)
    seconds = time.perf_counter() - started
    if as_json:
        print_json("dataset export", {"output": output, "samples": n, "seconds": seconds})
    else:
        show(facts([("wrote", output), ("samples", n), ("time", f"{seconds:.2f} s")]))
    return 0


def table_of_trials(trials: Sequence[Any], chosen: Any, n_samples: int) -> Any:
    """Trials of a search for a codec."""
    names = list(chosen.losses)
    columns = {"codec": "left", "bytes a sample": "right", **{f"loss of {n}": "right" for n in names}, "": "left"}
    rows = [
        [
            str(trial.codec), f"{trial.n_bytes / n_samples:.1f}", *(f"{trial.losses[name]:.6g}" for name in names),
            "chosen" if trial is chosen else "" if trial.fits else "over",
        ]
        for trial in trials
    ]  # fmt: skip
    return rows_table(columns, rows)
