"""`nearzip demo`."""

from __future__ import annotations

import click

from nearzip.cli.console import facts, human_bytes, print_json, progress, rows_table, show
from nearzip.cli.running import common_options
from nearzip.demo import DemoReport, MethodReport, run_demo

__all__ = ["demo"]

_PATH = click.Path(path_type=str)


@click.command()
@click.option(
    "--data",
    type=_PATH,
    envvar="NEARZIP_DATA",
    metavar="DIR",
    help="A folder with MNIST's .gz files.  [default: scikit-learn's digits]",
)
@click.option(
    "--output", type=_PATH, default="demo-output", show_default=True, metavar="DIR", help="Folder for all files."
)
@click.option("--epochs", type=click.IntRange(min=2), help="Number of versions.  [default: 20; 10 with MNIST]")
@click.option("--force", is_flag=True, help="Overwrite an earlier demo's files.")
@common_options
def demo(data: str | None, output: str, epochs: int | None, force: bool, as_json: bool) -> None:
    """Train a small network on real data, compress every epoch, restore the last in a new process, and check it.

    The data are scikit-learn's digits, or MNIST with --data (or NEARZIP_DATA). Needs: pip install 'nearzip[demo]'
    """
    with progress("demo", as_json, "steps") as callback:
        report = run_demo(
            output, data, epochs, force=force,
            progress=lambda done, total, what: callback(done, total) if callback else None,
        )  # fmt: skip
    if as_json:
        print_json("demo", report.to_json())
    else:
        show(_head(report), "", _table(report), "", _verdict(report))


def _head(report: DemoReport) -> str:
    network = "-".join(map(str, report.layers))
    return facts([
        ("data", f"{report.data}: {report.n_train:,} to train, {report.n_test:,} held out"),
        ("network", f"{network}, {report.n_parameters:,} parameters, trained in {report.train_seconds:.0f} s"),
        ("versions", f"{len(report.accuracy)} epochs of {human_bytes(report.version_bytes)}, "
                     f"{human_bytes(report.total_bytes)} in all"),
        ("accuracy", f"{report.accuracy[-1]:.2%} after the last epoch"),
    ])  # fmt: skip


def _table(report: DemoReport) -> object:
    columns = {"method": "left", "bytes": "right", "ratio": "right", "accuracy": "right", "error/bound": "right",
               "encode": "right", "decode": "right"}  # fmt: skip
    return rows_table(columns, [_row(report, method) for method in report.methods])


def _row(report: DemoReport, method: MethodReport) -> tuple[str, ...]:
    return (
        method.label,
        f"{method.total_bytes:,}",
        f"{report.ratio(method):.2f}x",
        f"{method.accuracy[-1]:.2%}",
        f"{method.worst_error / method.bound:.4f}" if method.bound else "lossless",
        f"{method.encode_seconds:.2f} s",
        f"{method.decode_seconds:.2f} s",
    )


def _verdict(report: DemoReport) -> str:
    bound = max(method.bound for method in report.methods)
    return "\n".join([
        f"Accuracy and error are of restored networks; bound: at most {bound:g} for every weight, in all epochs.",
        "Checked: for each method, a new process restored the last epoch from the files, bit for bit.",
        f"Archives, demo.png and demo.json are in {report.output}",
    ])  # fmt: skip
