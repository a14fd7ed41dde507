"""`nearzip store pull`: update a file to another version of a store."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from nearzip.cli.console import facts, human_bytes, print_json, progress, show
from nearzip.cli.running import common_options
from nearzip.cli.store import split_selector
from nearzip.cli.transfer import force_option, size_of, threads_option
from nearzip.store.pulling.pull import BANDWIDTHS, PullReport
from nearzip.store.pulling.pull import pull as pull_file

__all__ = ["pull"]


@click.command()
@click.argument("place", metavar="URL[@SELECTOR]")
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=str), metavar="FILE", help="The file to update."
)
@click.option("--dry-run", is_flag=True, help="Show what it would fetch, and do nothing.")
@click.option(
    "--connections", type=click.IntRange(1, 64), default=4, show_default=True, help="Objects fetched at a time."
)
@click.option("--max-download", callback=size_of, metavar="SIZE", help="Refuse to fetch more, such as 200MB.")
@click.option("--bandwidth", "bandwidths", multiple=True, type=click.FloatRange(min=0, min_open=True), metavar="MBPS",
              help="Show the time at this rate, in Mbit/s. Repeatable.  [default: 40.83 74.32 31.95]")  # fmt: skip
@force_option
@threads_option
@common_options
def pull(
    place: str,
    target: str,
    dry_run: bool,
    connections: int,
    max_download: int | None,
    bandwidths: Sequence[float],
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Update FILE to a version of the store at URL, fetching only what it lacks.

    URL is a web host that serves the store's files, or any store. The version of FILE (.safetensors, .pt, .npz) is
    found by its content. FILE need not exist; it is replaced only when everything was fetched and every digest is
    right. An interrupted pull continues where it stopped. SELECTOR is as for checkout.
    """
    started = time.perf_counter()
    url, selector = split_selector(place)
    with progress("store pull", as_json) as callback:
        report = pull_file(
            url, target, selector or "latest", force=force, dry_run=dry_run, connections=connections,
            max_download=max_download, threads=threads, progress=callback,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    rates = bandwidths or BANDWIDTHS
    if as_json:
        times = {str(rate): dict(zip(("update", "full"), report.seconds(rate), strict=True)) for rate in rates}
        print_json("store pull", {
            **vars(report), "ratio": report.ratio, "seconds": seconds, "seconds_at_mbps": times,
        })  # fmt: skip
    else:
        show(_text(report, rates, seconds))


def _text(report: PullReport, rates: Sequence[float], seconds: float) -> str:
    held = "no file" if report.held is None else f"version {report.held}"
    if not report.route:
        return facts([("file", report.path), ("version", f"{report.version}, already up to date")])
    resumed = f", {human_bytes(report.n_resumed)} from an interrupted pull" if report.n_resumed else ""
    moved = f"{human_bytes(report.n_moved)} of objects, {human_bytes(report.n_described)} of manifests{resumed}"
    return facts([
        ("would write" if not report.done else "wrote", report.path),
        ("version", f"{report.version}, from {held}"),
        ("route", f"{report.n_objects} objects, {human_bytes(report.n_needed)}: {report.ratio:.1f}x less than the "
                f"{human_bytes(report.n_full)} of tensors"),
        ("fetched", None if not report.done else moved),
        *[_time(report, rate) for rate in rates],
        ("time", None if not report.done else f"{seconds:.2f} s"),
    ])  # fmt: skip


def _time(report: PullReport, rate: float) -> tuple[str, str]:
    update, full = report.seconds(rate)
    return f"at {rate:g} Mbps", f"{update:.2f} s instead of {full:.2f} s"
