"""`nearzip store`: versions of a network under a path or URL."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import click

from nearzip.cli.console import (
    check_streams,
    facts,
    hint,
    human_bytes,
    output_of,
    print_json,
    progress,
    safe,
    show,
)
from nearzip.cli.running import common_options, showing_warnings
from nearzip.cli.transfer import force_option, kept_text, options_of, rename_option, renames_of, threads_option
from nearzip.cli.upkeep import prune, stat, verify
from nearzip.fileio import size_on_disk
from nearzip.store import Store, Version
from nearzip.store.selectors import is_selector

__all__ = ["store"]

_FILE = click.Path(path_type=str)


@click.group()
def store() -> None:
    """Keep versions of a network: small, verified, and restored bit for bit.

    URL is a folder or any URL that fsspec opens: s3://bucket/name, https://host/name (read only).
    """


def split_selector(text: str) -> tuple[str, str | None]:
    """Split URL@SELECTOR.

    Examples
    --------
    >>> split_selector("runs/vgg@best:accuracy"), split_selector("s3://me@host/x")
    (('runs/vgg', 'best:accuracy'), ('s3://me@host/x', None))
    """
    url, at, selector = text.rpartition("@")
    return (url, selector) if at and url and is_selector(selector) else (text, None)


def _numbers(pairs: Sequence[str]) -> dict[str, float]:
    return {name: _number(name, value) for name, value in options_of(pairs, "--metric", "name=number").items()}


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise click.UsageError(f"--metric {name} is a number, not {value!r}") from None


@store.command()
@click.argument("url")
@click.option("--bound", help="upd:0.1 (a tenth of the rms of each update), lossless, abs:1e-3, rel:1e-3, pwrel:0.01 "
              "or rms:0.01. Default: the method's.")  # fmt: skip
@click.option("--policy", help="forward, backward, hop or hop:8 (a keyframe every 8). Default: hop.")
@click.option("--method", help="See 'nearzip methods'. Default: nearzip.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the method. Repeatable.")
@click.option(
    "--single-writer",
    is_flag=True,
    help="Promise that there is one writer, for storage that cannot create files exclusively.",
)
@common_options
def init(
    url: str,
    bound: str | None,
    policy: str | None,
    method: str | None,
    settings: Sequence[str],
    single_writer: bool,
    as_json: bool,
) -> None:
    """Create a store at URL. An existing store is not changed."""
    made = Store(
        url, True, bound, policy, method, options_of(settings) or None,
        exclusive="single-writer" if single_writer else None,
    )  # fmt: skip
    _show_settings("store init", made, as_json)


@store.command()
@click.argument("url")
@click.option("--bound", help="For future versions.")
@click.option("--policy", help="forward, backward, hop or hop:8; 'nearzip store prune' applies it to old versions.")
@click.option("--method", help="See 'nearzip methods'.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the method. Repeatable.")
@common_options
def configure(
    url: str, bound: str | None, policy: str | None, method: str | None, settings: Sequence[str], as_json: bool
) -> None:
    """Change a store's settings. Existing versions are not changed."""
    opened = Store(url)
    opened.configure(bound=bound, policy=policy, method=method, options=options_of(settings) or None)
    _show_settings("store configure", opened, as_json)


def _show_settings(command: str, opened: Store, as_json: bool) -> None:
    settings = opened.settings
    if as_json:
        print_json(command, {"url": opened.url, **dataclasses.asdict(settings), "policy": str(settings.policy)})
    else:
        show(facts([
            ("store", opened.url),
            ("method", settings.method),
            ("bound", settings.bound or "the method's default"),
            ("policy", settings.policy),
        ]))  # fmt: skip
    if settings.method == "nearzip" and settings.bound is None:
        hint("every bit is kept; with --bound upd:0.1, a tenth of the rms of each update, versions are much smaller")


@store.command()
@click.argument("url")
@click.argument("file", type=_FILE)
@click.option("-m", "--message", default="", help="A description of the version.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Such as accuracy=0.93. Repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--step", type=int, help="Training step.")
@click.option("--timeout", type=click.FloatRange(min=0), default=300, show_default=True, help="Seconds to wait.")
@rename_option
@threads_option
@common_options
def commit(
    url: str,
    file: str,
    message: str,
    metrics: Sequence[str],
    tags: Sequence[str],
    step: int | None,
    renames: Sequence[str],
    timeout: float,
    threads: int | None,
    as_json: bool,
) -> int:
    """Add the network in FILE (.safetensors, .pt, .npz, .nz) as the next version.

    Exit code 1 if the store's bound is so coarse that nearly nothing of the change since the version before is kept.
    """
    started = time.perf_counter()
    opened = Store(url, threads=threads)
    with showing_warnings() as warned, progress("store commit", as_json) as callback:
        number = opened.commit_file(
            file,
            message,
            metrics=_numbers(metrics),
            tags=tags,
            step=step,
            rename=renames_of(renames),
            timeout=timeout,
            progress=callback,
        )
    seconds = time.perf_counter() - started
    version = opened.info(number)
    if as_json:
        kept = None if opened.update_kept is None else opened.update_kept.to_json()
        print_json("store commit", {
            "url": url, **version_document(version), "update_kept": kept, "seconds": seconds,
        })  # fmt: skip
    else:
        show(facts([
            ("version", number),
            ("size", f"{human_bytes(version.n_bytes)} of tensors -> {human_bytes(version.n_stored)}: "
                     f"{version.ratio:.2f}x smaller"),
            ("coded", _coded(version)),
            ("update", kept_text(opened.update_kept)),
            ("time", f"{seconds:.2f} s"),
        ]))  # fmt: skip
    return 1 if warned else 0


def _coded(version: Version) -> str:
    if version.base is None:
        return "keyframe"
    return f"delta to version {version.base}, {version.depth} from its keyframe"


def version_document(version: Version) -> dict[str, Any]:
    """A version as the JSON output shows it."""
    ratio = version.ratio if math.isfinite(version.ratio) else None
    return {"version": version.number, **{k: v for k, v in vars(version).items() if k != "number"}, "ratio": ratio}


@store.command()
@click.argument("url")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="List at most so many of the newest; 0: all.",
)
@click.option("--pruned", is_flag=True, help="Also list pruned versions.")
@common_options
def log(url: str, limit: int, pruned: bool, as_json: bool) -> None:
    """List versions: sizes, chain, metrics."""
    opened = Store(url)
    rows = opened.log(pruned=pruned)
    if as_json:
        print_json("store log", {"url": url, "versions": [version_document(row) for row in rows]})
        return
    shown = rows[-limit:] if limit else rows
    if not rows:
        show("no versions yet")
        return
    show(_log_table(shown))
    n_bytes, n_stored = sum(row.n_bytes for row in rows), sum(row.n_stored for row in rows)
    rest = f" ({len(rows) - len(shown):,} older ones not shown; --limit 0 lists all)" if len(rows) > len(shown) else ""
    show(f"{len(rows):,} versions, {human_bytes(n_bytes)} of tensors in {human_bytes(n_stored)}{rest}")


def _log_table(rows: Sequence[Version]) -> str:
    """Aligned lines, never cut to the width of the terminal: that would hide numbers."""
    heads = ("version", "time", "step", "size", "ratio", "coded", "metrics", "tags", "message")
    lines = [heads, *(tuple(str(cell) for cell in _log_row(row)) for row in rows)]
    used = [i for i in range(len(heads)) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(safe(line[i])) for line in lines) for i in used}
    return "\n".join("  ".join(f"{safe(line[i]):<{widths[i]}}" for i in used).rstrip() for line in lines)


def _log_row(row: Version) -> tuple[object, ...]:
    coded = "keyframe" if row.base is None else f"on {row.base}, depth {row.depth}"
    if row.pruned is not None:
        coded = "pruned"
    metrics = " ".join(f"{name}={value:g}" for name, value in row.metrics.items())
    return (
        row.number, row.time[:16].replace("T", " "), "" if row.step is None else row.step, human_bytes(row.n_stored),
        f"{row.ratio:.1f}", coded, metrics, " ".join(row.tags), row.message,
    )  # fmt: skip


@store.command()
@click.argument("place", metavar="URL[@SELECTOR]")
@click.option("-o", "--output", required=True, type=_FILE, metavar="OUT", help="Its ending chooses the format.")
@force_option
@threads_option
@common_options
def checkout(place: str, output: str, force: bool, threads: int | None, as_json: bool) -> int:
    """Restore a version to a file of the format that it was made from, or to .safetensors, .pt or .npz; - is stdout.

    SELECTOR is latest (the default), a number, tag:NAME, step=N, best:METRIC (the largest) or min:METRIC.
    """
    started = time.perf_counter()
    url, selector = split_selector(place)
    on_stdout = check_streams(outputs=[output])
    opened = Store(url, threads=threads)
    with showing_warnings() as warned, progress("store checkout", as_json) as callback:
        number = opened.checkout_file(selector or "latest", output_of(output), force=force, progress=callback)
    seconds = time.perf_counter() - started
    n_bytes = None if on_stdout else size_on_disk(output)
    if as_json:
        print_json("store checkout", {
            "url": url, "version": number, "output": output, "bytes_out": n_bytes, "seconds": seconds,
            "warnings": warned,
        }, err=on_stdout)  # fmt: skip
    else:
        show(facts([
            ("wrote", output), ("version", number), ("size", None if n_bytes is None else human_bytes(n_bytes)),
            ("time", f"{seconds:.2f} s"),
        ]), err=on_stdout)  # fmt: skip
    return 1 if warned else 0


@store.command()
@click.argument("place", metavar="URL[@SELECTOR]")
@click.option("-o", "--output", required=True, type=_FILE, metavar="FOLDER", help="Created if it does not exist.")
@click.option("--ending", type=click.Choice([".safetensors", ".npz", ".pt"]), default=".safetensors", show_default=True)
@force_option
@threads_option
@common_options
def export(place: str, output: str, ending: str, force: bool, threads: int | None, as_json: bool) -> None:
    """Write versions as checkpoint files, and log.json. Without a selector, all versions."""
    url, selector = split_selector(place)
    opened = Store(url, threads=threads)
    with progress("store export", as_json, "versions") as callback:
        written = opened.export(output, selector, ending=ending, force=force, progress=callback)
    if as_json:
        print_json("store export", {"url": url, "output": output, "files": written})
    else:
        show(facts([("wrote", f"{len(written)} versions and log.json"), ("folder", output)]))


for command in (prune, stat, verify):
    store.add_command(command)
