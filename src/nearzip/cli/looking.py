"""nearzip inspect, compare and methods: they write nothing but a plot."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

import nearzip
from nearzip.archive import TensorReport
from nearzip.cli.console import (
    check_streams,
    facts,
    human_bytes,
    input_of,
    print_json,
    progress,
    rows_table,
    safe,
    show,
    warn,
)
from nearzip.cli.running import common_options
from nearzip.cli.transfer import bound_text, others_text, share_text, some, threads_option
from nearzip.coding import Codings
from nearzip.comparison import Comparison
from nearzip.errors import CorruptError, Error, WrongBaseError
from nearzip.figures import Figures
from nearzip.fileio import spooled_input
from nearzip.inputs import open_input
from nearzip.matching import matches_text
from nearzip.plots import check_plot, draw_comparison
from nearzip.reading import Reader
from nearzip.recipes import Recipe, recipe_types

__all__ = ["compare", "inspect", "methods"]

_FILE = click.Path(path_type=str)
_BAR = 40
F = TypeVar("F", bound=Callable[..., Any])


def _limit_option(default: int) -> Callable[[F], F]:
    return click.option(
        "--limit", type=click.IntRange(min=0), default=default, show_default=True, help="Most tensors to list; 0: all."
    )


def _rest(n_all: int, n_shown: int) -> str | None:
    return f"and {n_all - n_shown:,} more tensors; --limit 0 lists all" if n_all > n_shown else None


# ---- inspect ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("archive", metavar="IN.nz", type=_FILE)
@click.option("--verify", is_flag=True, help="Decode everything and report damage (exit code 12).")
@click.option("--base", type=_FILE, metavar="OLD", help="For --verify of an update: what it was made against.")
@click.option("--sort", type=click.Choice(["file", "name", "size"]), default="file", show_default=True)
@_limit_option(100)
@common_options
def inspect(archive: str, verify: bool, base: str | None, sort: str, limit: int, as_json: bool) -> None:
    """Show what an archive holds and how it is coded. Needs no base. IN.nz: '-' for stdin."""
    if base is not None and not verify:
        raise click.UsageError("--base is of use only with --verify")
    check_streams([archive, base])
    with contextlib.ExitStack() as stack:
        checkpoint = None if base is None else stack.enter_context(contextlib.closing(open_input(input_of(base))))
        reader = stack.enter_context(nearzip.open(input_of(archive), checkpoint))
        if verify and checkpoint is None and reader.index.base_id is not None:
            raise WrongBaseError(f"{archive}: is an update of {reader.index.base_id}; give that base to verify: --base")
        damage = dict(reader.damage()) if verify else None
        reports = _sorted(reader.tensor_reports(), sort)
        if as_json:
            print_json("inspect", _inspect_document(archive, reader, reports, damage))
        else:
            show(*_inspect_text(archive, reader, reports, limit, damage))
    if damage:
        first = next(iter(damage.values()))
        raise CorruptError(
            f"{archive}: {len(damage)} of {len(reports)} tensors cannot be read; the first error: {first}"
        )


def _sorted(reports: list[TensorReport], sort: str) -> list[TensorReport]:
    if sort == "name":
        return sorted(reports, key=lambda report: report.spec.name)
    if sort == "size":
        return sorted(reports, key=lambda report: -report.n_bytes)
    return reports


def _bits(report: TensorReport) -> float:
    return 8 * report.n_bytes / report.spec.n_elements if report.spec.n_elements else 0.0


def _inspect_document(
    archive: str, reader: Reader, reports: list[TensorReport], damage: Mapping[str, Error] | None
) -> dict[str, Any]:
    index, codings = reader.index, _codings(reader)
    return {
        "archive": archive,
        "writer": index.writer,
        "method": index.method,
        "bound": index.bound,
        "id": index.id,
        "base_id": index.base_id,
        "metadata": index.metadata,
        "bytes": reader.nbytes,
        "tensor_bytes": index.n_bytes,
        "values": _n_values(reader),
        "gone": index.gone,
        "matches": {
            name: {"name": base.name, "dtype": base.dtype, "shape": base.shape}
            for name, base in (index.matches or {}).items()
        },
        "damage": None if damage is None else {name: str(error) for name, error in damage.items()},
        "tensors": [
            {
                "name": report.spec.name,
                "dtype": report.spec.dtype,
                "shape": report.spec.shape,
                "coding": None if codings is None else codings[report.spec.name].to_json(),
                "stages": report.stages,
                "with_base": report.with_base,
                "bytes": report.n_bytes,
                "bits_per_value": _bits(report),
                "alias_of": report.alias_of,
            }
            for report in reports
        ],
    }


def _codings(reader: Reader) -> Codings | None:
    """How the tensors were coded; None if the index has that in a way that this release cannot read."""
    try:
        return reader.codings
    except CorruptError:
        return None  # decoding needs none of it


def _n_values(reader: Reader) -> int:
    return sum(spec.n_elements for spec in reader.index.tensors)


def _inspect_text(
    archive: str, reader: Reader, reports: list[TensorReport], limit: int, damage: Mapping[str, Error] | None
) -> list[Any]:
    index, n = reader.index, _n_values(reader)
    options = ", ".join(f"{key}={value}" for key, value in index.method.get("options", {}).items() if value is not None)
    head = facts([
        ("archive", archive),
        ("writer", index.writer),
        ("method", f"{index.method.get('name')} ({options})" if options else index.method.get("name")),
        ("bound", bound_text(index.bound)),
        ("others", others_text(index.method)),
        ("id", index.id),
        ("base id", index.base_id or "none needed"),
        ("holds", f"{len(reports):,} tensors, {n:,} values, {human_bytes(index.n_bytes)}"),
        ("size", f"{human_bytes(reader.nbytes)}: {index.n_bytes / reader.nbytes:.2f}x smaller, "
                 f"{8 * reader.nbytes / max(1, n):.3f} bits per value"),
        ("gone", some(index.gone)),
        ("matched", matches_text(index.matches or {}, {spec.name: spec for spec in index.tensors})),
        *((f"metadata {safe(key)}", value) for key, value in index.metadata.items()),
        ("verified", None if damage is None else _verdict(damage)),
    ])  # fmt: skip
    shown = reports[: limit or None]
    words = _coding_words(reader, shown)
    ways = list(dict.fromkeys(words.values()))
    legend = [f"{i}: {safe(way)}" for i, way in enumerate(ways, 1)]
    rest = _rest(len(reports), len(shown))
    return [head, "", _inspect_table(shown, words, ways), *([rest] if rest else []), "", *legend]


def _coding_words(reader: Reader, reports: list[TensorReport]) -> dict[str, str]:
    """How each tensor is coded: its stages, and method and bound unless all have the same."""
    codings = _codings(reader)
    various = codings is not None and bool(codings.by_name)
    words = {}
    for report in reports:
        if report.alias_of is not None:
            words[report.spec.name] = f"same as {report.alias_of}"
            continue
        stages = " > ".join(report.stages)
        coding = codings[report.spec.name] if codings is not None and various else None
        words[report.spec.name] = stages if coding is None else f"{coding.method}, {coding.bound}: {stages}"
    return words


def _verdict(damage: Mapping[str, Error]) -> str:
    return f"{len(damage)} tensors cannot be read" if damage else "every tensor decodes to what was written"


def _inspect_table(reports: list[TensorReport], words: Mapping[str, str], ways: list[str]) -> Any:
    number = {way: str(i) for i, way in enumerate(ways, 1)}
    columns = {"tensor": "left", "dtype": "left", "shape": "left", "bytes": "right", "bits/value": "right",
               "base": "left", "coding": "left"}  # fmt: skip
    rows = []
    for report in reports:
        spec = report.spec
        head = (spec.name, spec.dtype, "x".join(map(str, spec.shape)) or "-")
        if report.alias_of is not None:
            rows.append((*head, "0", "0", "", number[words[spec.name]]))
        else:
            base = "yes" if report.with_base else "no"
            rows.append((*head, f"{report.n_bytes:,.0f}", f"{_bits(report):.3f}", base, number[words[spec.name]]))
    return rows_table(columns, rows)


# ---- compare ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--plot", type=_FILE, metavar="FILE.png", help="Values of B over those of A, and their differences.")
@click.option("--force", is_flag=True, help="Overwrite the plot if it exists.")
@click.option("--sort", type=click.Choice(["file", "name", "error"]), default="file", show_default=True)
@click.option("--bits", type=click.IntRange(1, 16), help="Compare values quantized to so many bits, tensor by tensor.")
@click.option("--exact", is_flag=True, help="Histogram and SSIM of every value; by default of a part of large tensors.")
@_limit_option(100)
@threads_option
@common_options
def compare(
    a: str,
    b: str,
    plot: str | None,
    force: bool,
    sort: str,
    bits: int | None,
    exact: bool,
    limit: int,
    threads: int | None,
    as_json: bool,
) -> int:
    """Compare two networks: differences, linear fit, structural similarity, and what the update from A to B would take.

    A and B are files or folders of any format that is read, or archives that need no base; one of them may be '-' for
    stdin. Exit code 1 if the networks have no tensor in common.
    """
    check_streams([a, b])
    if plot is not None:
        check_plot(plot, force, [a, b])
    with contextlib.ExitStack() as stack:
        places = [spooled_input(sys.stdin.buffer, stack) if input_of(each) != each else each for each in (a, b)]
        with progress("compare", as_json, "values") as callback:
            found = nearzip.compare(
                *places, bits=bits, exact=exact, estimates=bits is None, threads=threads, progress=callback
            )
        if plot is not None:
            draw_comparison(found, a, b, plot, force)
    if as_json:
        print_json("compare", _compare_document(found, a, b, plot))
    else:
        show(*_compare_text(found, a, b, plot, sort, limit))
    if not found.anything_in_common:
        warn(_nothing_text(found))
        return 1
    return 0


def _nothing_text(found: Comparison) -> str:
    """Why nothing was compared, and what to do."""
    if not (found.only_in_a or found.only_in_b or found.mismatched):
        return "neither holds a tensor; there is nothing to compare"
    fallback = "they are different networks, or name their tensors differently"
    return f"no tensor has the same name, dtype and shape in both: {found.reason or fallback}"


def _figures_document(figures: Figures) -> dict[str, Any]:
    return {**dataclasses.asdict(figures), "unchanged": figures.unchanged, "corrcoef": figures.corrcoef}


def _compare_document(found: Comparison, a: str, b: str, plot: str | None) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "plot": plot,
        "identical": found.identical,
        "anything_in_common": found.anything_in_common,
        "reason": found.reason,
        "bytes_a": found.n_bytes_a,
        "bytes_b": found.n_bytes_b,
        "ratio": found.ratio,
        "only_in_a": found.only_in_a,
        "only_in_b": found.only_in_b,
        "mismatched": found.mismatched,
        "estimates": [
            {"bound": str(one.bound), "bytes": one.n_bytes, "update_kept": one.share} for one in found.estimates
        ],
        "total": _figures_document(found.total),
        "tensors": {name: _figures_document(figures) for name, figures in found.tensors.items()},
    }


def _compare_text(found: Comparison, a: str, b: str, plot: str | None, sort: str, limit: int) -> list[Any]:
    total = found.total
    fit, odd = total.fit, total.n_nonfinite_mismatches
    sides = [
        ("a", f"{a} ({human_bytes(found.n_bytes_a)})"),
        ("b", f"{b} ({human_bytes(found.n_bytes_b)}; a is {found.ratio:.2f}x its size)"),
        ("compared", _compared_text(found)),
        ("only in a", some(found.only_in_a)),
        ("only in b", some(found.only_in_b)),
        ("not alike", some([f"{name} ({why})" for name, why in found.mismatched.items()])),
        ("because", found.reason if found.anything_in_common else None),
    ]
    if not found.anything_in_common:
        return [facts(sides)]
    head = facts([
        *sides,
        ("NaN or Inf", f"in one only: {odd:,} values" if odd else None),
        ("error", f"max {total.max_abs_error:.4g}, rms {total.rms_error:.4g}, mean {total.mean_difference:.4g}; "
                  f"max relative {total.max_relative_error:.4g}"),
        ("MDM", f"{total.mdm:.4g}"),
        ("fit", fit and f"b = {fit.slope:.6g} a {fit.intercept:+.3g}, CorrCoef r = {fit.r:.6f}"),
        ("SSIM", None if total.ssim is None else f"{total.ssim:.6f}"),
        ("plot", plot),
    ])  # fmt: skip
    names = _ordered(found, sort)
    shown = names[: limit or None]
    rest = _rest(len(names), len(shown))
    histogram = _histogram(total)
    bounds = ["", _estimates_table(found)] if found.estimates else []
    return [
        head, "", _compare_table(found, shown), *([rest] if rest else []), *(["", *histogram] if histogram else []),
        *bounds,
    ]  # fmt: skip


def _compared_text(found: Comparison) -> str:
    total = found.total
    if not found.anything_in_common:
        return "nothing"
    unchanged = f"{total.unchanged:.2%} unchanged" if total.n_values else "all of them empty"
    return f"{len(found.tensors):,} tensors, {total.n_values:,} values, {unchanged}"


def _estimates_table(found: Comparison) -> Any:
    """What compressing b against a would come to."""
    columns = {"update from a to b": "left", "about": "right", "kept": "right"}
    rows = [(f"--bound {one.bound}", human_bytes(one.n_bytes), share_text(one.share)) for one in found.estimates]
    return rows_table(columns, rows)


def _ordered(found: Comparison, sort: str) -> list[str]:
    if sort == "name":
        return sorted(found.tensors)
    if sort == "error":
        return sorted(found.tensors, key=lambda name: -found.tensors[name].max_abs_error)
    return list(found.tensors)


def _compare_table(found: Comparison, names: Sequence[str]) -> Any:
    columns = {"tensor": "left", "values": "right", "same": "right", "max error": "right", "rms error": "right",
               "r": "right", "SSIM": "right"}  # fmt: skip
    rows = []
    for name in names:
        figures = found.tensors[name]
        r = f"{figures.fit.r:.6f}" if figures.fit else "-"
        similar = "-" if figures.ssim is None else f"{figures.ssim:.6f}"
        rows.append((name, f"{figures.n_values:,}", f"{figures.unchanged:.1%}", f"{figures.max_abs_error:.3g}",
                     f"{figures.rms_error:.3g}", r, similar))  # fmt: skip
    return rows_table(columns, rows)


def _histogram(total: Figures) -> list[str]:
    """Differences by power of ten, as bars."""
    if not total.histogram:
        return []
    largest = max(total.histogram.values())
    lines = ["|b - a| by power of ten"]
    for k in range(max(total.histogram), min(total.histogram) - 1, -1):
        n = total.histogram.get(k, 0)
        lines.append(f"1e{k:+03d} .. 1e{k + 1:+03d}  {n:>13,}  {'#' * round(_BAR * n / largest)}".rstrip())
    return lines


# ---- methods ---------------------------------------------------------------------------------------------------


@click.command()
@common_options
def methods(as_json: bool) -> None:
    """List the methods, their options and defaults."""
    rows = [_method_row(name, text, recipe_types().get(name)) for name, text in nearzip.methods().items()]
    if as_json:
        print_json("methods", {"methods": rows})
        return
    for row in rows:
        marks = "" if row["stability"] == "stable" else f" ({row['stability']})"
        settings = [
            f"{key}={_spelled(value)}{' (experimental)' if key in row['experimental_options'] else ''}"
            for key, value in row["options"].items()
        ]
        show(safe(row["name"]) + marks, f"    {safe(row['description'])}")
        if row["stability"] != "broken":
            show(f"    options: {safe(', '.join(settings)) or 'none'}")


def _method_row(name: str, description: str, recipe: type[Recipe] | None) -> dict[str, Any]:
    if recipe is None:  # of a plug-in that cannot be loaded; the description says why
        return {
            "name": name,
            "description": description,
            "stability": "broken",
            "options": {},
            "experimental_options": [],
        }
    return {
        "name": name,
        "description": description,
        "stability": recipe.stability,
        "options": {field.name: field.default for field in dataclasses.fields(recipe)},
        "experimental_options": sorted(recipe.experimental_options),
    }


def _spelled(value: Any) -> str:
    return "(unset)" if value is None else str(value)
