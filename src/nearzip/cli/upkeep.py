"""`nearzip store prune`, `stat` and `verify`: what a store needs from time to time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nearzip.cli.console import (
    facts,
    hint,
    human_bytes,
    print_json,
    progress,
    safe,
    show,
    warn,
)
from nearzip.cli.running import common_options
from nearzip.cli.transfer import threads_option
from nearzip.errors import CorruptError
from nearzip.store import Store, VerifyReport
from nearzip.store.sharded import INDEX, is_sharded, prune_sharded

__all__ = ["prune", "stat", "verify"]

_FILE = click.Path(path_type=str)


@click.command()
@click.argument("url")
@click.option(
    "--keep",
    multiple=True,
    metavar="RULE",
    help="last:5, every:10, best:METRIC, min:METRIC, tag:NAME, tagged, a number, all. A version is kept if any rule "
    "keeps it. Repeatable.",
)
@click.option("--drop", multiple=True, type=click.IntRange(min=0), help="A version to drop whatever the rules say.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--timeout", type=click.FloatRange(min=0), default=60, show_default=True, help="Seconds to wait.")
@threads_option
@common_options
def prune(
    url: str,
    keep: Sequence[str],
    drop: Sequence[int],
    dry_run: bool,
    timeout: float,
    threads: int | None,
    as_json: bool,
) -> int:
    """Drop versions and delete unreferenced objects. Versions that stay are restored bit for bit as before.

    Versions that depend on dropped ones are re-encoded where that saves space. The newest version is always kept. With
    --keep all no version is dropped; files of interrupted writers are removed, and the store's policy is applied.
    """
    if not keep:
        raise click.UsageError("say what to keep, such as --keep last:5 --keep tagged, or --keep all")
    if is_sharded(url):
        return _prune_sharded(url, keep, drop, dry_run, timeout, threads, as_json)
    opened = Store(url, threads=threads)
    with progress("store prune", as_json, "versions") as callback:
        report = opened.prune(keep, drop, dry_run=dry_run, timeout=timeout, progress=callback)
    for text in report.skipped:
        warn(text)
    if as_json:
        print_json("store prune", {"url": url, **vars(report)})
    else:
        would = "would be " if dry_run else ""
        show(facts([
            ("kept", f"{len(report.kept)} versions: {_numbered(list(report.kept))}"),
            ("dropped", f"{len(report.dropped)} versions{f': {_numbered(report.dropped)}' if report.dropped else ''}"),
            ("re-encoded", _numbered(report.recoded) or None),
            ("retained", f"bytes of {_numbered(report.retained)}, which others are coded against" if report.retained
             else None),
            (f"{would}freed", f"{human_bytes(report.n_freed)}, {report.n_objects} objects"),
        ]))  # fmt: skip
    return 1 if report.skipped else 0


def _prune_sharded(
    url: str,
    keep: Sequence[str],
    drop: Sequence[int],
    dry_run: bool,
    timeout: float,
    threads: int | None,
    as_json: bool,
) -> int:
    """Prune a folder that torch.distributed.checkpoint saves into."""
    reports = prune_sharded(url, keep, drop, dry_run=dry_run, timeout=timeout, threads=threads)
    index = reports[INDEX]
    skipped = [f"{name}: {text}" for name, report in reports.items() for text in report.skipped]
    n_freed, n_objects = sum(r.n_freed for r in reports.values()), sum(r.n_objects for r in reports.values())
    for text in skipped:
        warn(text)
    if as_json:
        print_json("store prune", {
            "url": url, **vars(index), "n_freed": n_freed, "n_objects": n_objects, "skipped": skipped,
            "stores": {name: vars(report) for name, report in reports.items()},
        })  # fmt: skip
    else:
        would = "would be " if dry_run else ""
        show(facts([
            ("kept", f"{len(index.kept)} checkpoints: {_numbered(list(index.kept))}"),
            ("dropped", f"{len(index.dropped)} checkpoints{f': {_numbered(index.dropped)}' if index.dropped else ''}"),
            (f"{would}freed", f"{human_bytes(n_freed)}, {n_objects} objects in {len(reports)} stores"),
        ]))  # fmt: skip
    return 1 if skipped else 0


def _numbered(numbers: Sequence[int]) -> str:
    """Ranges of numbers.

    Examples
    --------
    >>> _numbered([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@click.command()
@click.argument("url")
@common_options
def stat(url: str, as_json: bool) -> None:
    """Show the size of a store and what takes the space."""
    found = Store(url).stat()
    if as_json:
        print_json("store stat", {"url": url, **vars(found)})
        return
    show(facts([
        ("store", url),
        ("versions", f"{found.n_versions:,} ({found.n_keyframes:,} keyframes, {found.n_pruned:,} pruned)"),
        ("restored", f"{human_bytes(found.n_bytes)} of tensors"),
        ("objects", f"{found.n_objects:,}, {human_bytes(found.n_stored)}"),
        ("manifests", human_bytes(found.n_manifests)),
        ("ratio", f"{found.n_bytes / found.n_stored:.2f}" if found.n_stored else None),
        ("retained", f"{human_bytes(found.n_retained)} of pruned versions, which others are coded against"
         if found.n_retained else None),
        ("unreferenced", f"{human_bytes(found.n_garbage)}; 'nearzip store prune {url} --keep all' deletes it"
         if found.n_garbage else None),
        ("longest chain", f"{found.depth} deltas"),
    ]))  # fmt: skip


@click.command()
@click.argument("url")
@click.option("--level", type=click.Choice(["quick", "full", "deep"]), default="full", show_default=True,
              help="quick: structure; full: also every object's digest; deep: decode every version.")  # fmt: skip
@click.option(
    "--subset", metavar="SHARE", help="A part of the store: 5% at random, or 2/20, the second of twenty slices."
)
@click.option("--max-duration", type=click.FloatRange(min=0), metavar="SECONDS", help="Start no check after this time.")
@click.option("--repair", is_flag=True, help="Restore what can be restored; nothing readable is removed.")
@click.option("--source", "sources", multiple=True, metavar="URL|FILE",
              help="For --repair: a copy of the store, or a file with a version's content. Repeatable.")  # fmt: skip
@threads_option
@common_options
def verify(
    url: str,
    level: str,
    subset: str | None,
    max_duration: float | None,
    repair: bool,
    sources: Sequence[str],
    threads: int | None,
    as_json: bool,
) -> int:
    """Check for damage: what it is, which versions it affects, which are readable, and what to do.

    The exit code is 12 if there is damage, or if --repair leaves some.
    """
    if sources and not repair:
        raise click.UsageError("--source requires --repair")
    with progress("store verify", as_json, "versions" if level == "deep" else "bytes") as callback:
        options: dict[str, Any] = {
            "level": level, "subset": subset, "max_duration": max_duration, "progress": callback,
        }  # fmt: skip
        opened = None if repair else Store(url, threads=threads)
        report = Store.repair(url, sources, **options) if opened is None else opened.verify(**options)
    if as_json:
        print_json("store verify", {
            "url": url, **vars(report), "damages": [vars(damage) for damage in report.damages], "ok": report.ok,
        })  # fmt: skip
    else:
        _show_report(url, report)
    return 0 if report.ok else CorruptError.exit_code


def _show_report(url: str, report: VerifyReport) -> None:
    for text in report.repaired:
        show(f"repaired  {safe(text)}")
    for text in report.lost:
        show(f"lost      {safe(text)}")
    for damage in report.damages:
        show(f"damaged   {safe(damage.path)}: {safe(damage.problem)}")
        if damage.versions:
            show(f"          affects versions {_numbered(damage.versions)}")
        show(f"          {safe(damage.advice)}")
    show(facts([
        ("store", url),
        ("checked", f"{report.n_versions} versions, {report.n_objects} objects"),
        ("read", f"{report.n_checked} objects, {human_bytes(report.n_bytes)}" if report.n_checked else None),
        ("not checked", None if report.complete else "the rest, as requested"),
        ("unreadable", _numbered(report.unreadable) or None),
        ("readable", f"{len(report.readable)} versions"),
        ("verdict", "damaged" if report.damages else "no damage found"),
        ("time", f"{report.seconds:.2f} s"),
    ]))  # fmt: skip
    for note in report.notes:
        hint(note)
