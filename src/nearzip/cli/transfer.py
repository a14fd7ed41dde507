"""nearzip compress and decompress."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from nearzip.api import FileReport, PlanLike, compress_file, decompress_file
from nearzip.bounds import Rms, Update
from nearzip.changes import UpdateKept
from nearzip.cli.calibrating import calibrated_file, calibration_options
from nearzip.cli.console import (
    check_streams,
    facts,
    hint,
    human_bytes,
    input_of,
    output_of,
    print_json,
    progress,
    safe,
    show,
    warn,
)  # fmt: skip
from nearzip.cli.functions import load_function
from nearzip.cli.running import common_options, showing_warnings
from nearzip.errors import Error
from nearzip.estimates import estimate
from nearzip.fileio import check_outputs, is_stream, size_on_disk, spooled_input
from nearzip.inputs import open_input
from nearzip.limits import Limits
from nearzip.matching import renamed

__all__ = ["compress", "decompress", "options_of", "rename_option", "renames_of", "size_of"]

_FILE = click.Path(path_type=str)
#: A bound is worth a hint where it makes the file smaller than this times its size.
_WORTH = 0.9
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def options_of(pairs: Sequence[str], option: str = "--set", form: str = "key=value") -> dict[str, str]:
    """What a repeatable option such as --set was given."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{option} takes {form}, not {pair!r}")
        if key in found:
            raise click.UsageError(f"{option} {key} is given twice")
        found[key] = value
    return found


def bounds_of(texts: Sequence[str]) -> str | dict[str, str] | None:
    """What --bound says: one bound, or bounds by pattern ("*" for one without)."""
    found: dict[str, str] = {}
    for text in texts:
        pattern, equals, bound = text.rpartition("=")
        if equals and not pattern:
            raise click.UsageError(f"--bound takes PATTERN=BOUND or BOUND, not {text!r}")
        if (pattern or "*") in found:
            raise click.UsageError(f"--bound {pattern or '*'!r} is given twice")
        found[pattern or "*"] = bound
    return found["*"] if set(found) == {"*"} else found or None


def size_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, with an optional decimal unit."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", value, re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{value!r} is not a size such as 4GB or 500000", ctx, param)
    return int(float(match[1]) * _UNITS[match[2].lower()])


rename_option = click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="OLD=NEW",
    help="Tensors of the base that begin with OLD are called NEW.. now. Repeatable. Prefixes of torch.compile and DDP, "
    "and others that are certain, need none.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Default: NEARZIP_THREADS, or all processors."
)
force_option = click.option("--force", is_flag=True, help="Overwrite outputs that exist.")


@click.command()
@click.argument("new", type=_FILE)
@click.option("--base", type=_FILE, metavar="OLD", help="What the reader already holds; makes an update.")
@click.option("-o", "--output", required=True, type=_FILE, metavar="OUT.nz", help="The archive to write; - is stdout.")
@click.option("--method", help="See 'nearzip methods'.  [default: nearzip]")
@click.option(
    "--bound",
    "bounds",
    multiple=True,
    metavar="[PATTERN=]BOUND",
    help="For updates upd:0.1, a tenth of the update's rms; else lossless, abs:1e-3, rel:1e-3, pwrel:0.01 or rms:0.01. "
    "For some tensors: '*.bias=lossless'. Repeatable. Default: the method's.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the method. Repeatable.")
@click.option("--plan", "plan_path", type=_FILE, metavar="PLAN", help="Settings that 'nearzip tune' found.")
@calibration_options
@rename_option
@click.option("--restored", type=_FILE, metavar="FILE", help="Also write what a reader will get, the next base.")
@click.option(
    "--residual",
    type=_FILE,
    metavar="FILE",
    help="For federated rounds: add what earlier updates left out, and keep here what this one leaves out.",
)
@click.option(
    "--retrain",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="For methods that prune: takes a dict of arrays and what to hold, returns the dict retrained.",
)
@force_option
@threads_option
@common_options
def compress(
    new: str,
    base: str | None,
    output: str,
    method: str | None,
    bounds: Sequence[str],
    settings: Sequence[str],
    plan_path: str | None,
    calibrate: str | None,
    step: float | None,
    kl: float | None,
    renames: Sequence[str],
    restored: str | None,
    residual: str | None,
    retrain: str | None,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Compress the network NEW, or the update that leads from OLD to it.

    Reads .safetensors, .pt and its other endings, .npz, .npy and more, told by their content, and .nz archives that
    need no base; - is stdin. For the next update, give as --base what the reader will hold then: the file written by
    --restored, not the original.
    """
    if plan_path is not None and (method or bounds or settings):
        raise click.UsageError("a plan says method, bounds and options; give --plan or those, not both")
    if calibrate is None and (step is not None or kl is not None):
        raise click.UsageError("--step and --kl go with --calibrate; without it, give a --bound")
    if calibrate is not None and (settings or retrain or method not in (None, "nearzip")):
        raise click.UsageError("--calibrate is for the method nearzip, without --set and --retrain")
    if plan_path is not None and (step is not None or kl is not None):
        raise click.UsageError("a plan says how far to go; give --plan or --step or --kl")
    if renames and (base is None or calibrate is not None):
        raise click.UsageError("--rename goes with --base, without --calibrate")
    if residual is not None and (base is None or plan_path or calibrate or renames or restored or retrain):
        raise click.UsageError("--residual goes with --base, and with --method, --bound and --set alone")
    rename = renames_of(renames)
    bound = bounds_of(bounds)
    if calibrate is not None and isinstance(bound, dict):
        raise click.UsageError("--calibrate keeps one --bound for all tensors, not bounds by pattern")
    on_stdout = check_streams([new, base, plan_path], [output, restored])
    check_outputs([name for name in (output, restored) if name != "-"], [new, base, plan_path], force)
    plan = None if plan_path is None else _load_plan(plan_path)
    function = None if retrain is None else load_function("--retrain", retrain)
    started = time.perf_counter()
    with showing_warnings() as warned, progress("compress", as_json) as callback:
        source, target = input_of(new), output_of(output)
        reference = None if base is None else input_of(base)
        how: dict[str, Any] = {
            "restored": None if restored is None else output_of(restored),
            "force": force, "threads": threads, "progress": callback,
        }  # fmt: skip
        if residual is not None:
            from nearzip.cli.federated import update_with_residual

            named = [name for name in (new, base, output, residual) if name != "-"]
            if len(named) < 4:
                raise click.UsageError("--residual takes files, not '-'")
            report = update_with_residual(new, str(base), output, residual, method, bound, options_of(settings), force)
        elif calibrate is not None:
            report = calibrated_file(source, target, reference, calibrate, step, kl, bound=bound, plan=plan, **how)
        else:
            report = compress_file(
                source,
                target,
                reference,
                method or "nearzip",
                bound,
                plan,
                options_of(settings) or None,
                rename=rename,
                retrain=function,
                **how,
            )
    seconds = time.perf_counter() - started
    if as_json:
        print_json("compress", _compress_document(report, output, restored, seconds), err=on_stdout)
    else:
        show(_compress_text(report, output, restored, seconds), err=on_stdout)
    if method in (None, "nearzip") and bound is None and plan is None and calibrate is None and residual is None:
        _hint_at_bounds(new, base, rename, report, threads)
    return 1 if warned else 0


def _load_plan(path: str) -> PlanLike:
    from nearzip.budget.plan import Plan  # here: most commands need none of the search for plans

    with contextlib.ExitStack() as stack:
        given = input_of(path)
        return Plan.load(given if isinstance(given, str) else spooled_input(given, stack))


def renames_of(texts: Sequence[str]) -> dict[str, str] | None:
    """What --rename says. Raises click.UsageError."""
    rename: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or old in rename:
            raise click.UsageError(f"--rename {text!r}: write OLD=NEW, each OLD once")
        rename[old] = new
    return rename or None


def _hint_at_bounds(
    new: str, base: str | None, rename: Mapping[str, str] | None, report: FileReport, threads: int | None
) -> None:
    """What a bound would have come to, estimated on a sample of this very network or update."""
    if any(name == "-" or is_stream(name) for name in (new, base) if name):  # which cannot be read again
        hint("every bit was kept; with a --bound the file is smaller")
        return
    is_update = base is not None and report.write.index.base_id is not None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(open_input(new)))
        reference = stack.enter_context(contextlib.closing(open_input(base))) if base and is_update else None
        if reference is not None and rename:
            reference = renamed(reference, rename)
        [found] = estimate(source, reference, [Update(0.1) if is_update else Rms(0.01)], threads)
    if found.n_bytes > _WORTH * report.n_bytes:
        hint("every bit was kept")
    elif is_update:
        hint(
            f"every bit was kept; with --bound {found.bound}, each value within a tenth of the update's rms, the file "
            f"would take about {human_bytes(found.n_bytes)} and keep {share_text(found.share)} of the update"
        )
    else:
        hint(
            f"every bit was kept; with --bound {found.bound}, each value within a hundredth of its tensor's rms, the "
            f"file would take about {human_bytes(found.n_bytes)}"
        )


def share_text(share: float | None) -> str:
    """A share in percent, rounded down: only what is whole is called so.

    Examples
    --------
    >>> share_text(0.99996), share_text(1.0), share_text(0.00004)
    ('99.99 %', '100 %', '0 %')
    """
    if share is None:
        return "-"
    percent = math.floor(share * 10_000) / 100
    return f"{percent:g} %"


def kept_text(kept: UpdateKept | None) -> str | None:
    """How much of an update is kept, for people."""
    if kept is None or not kept.tensors:
        return None
    lost = f"; lost in {some(kept.lost)}" if kept.lost else ""
    return f"{share_text(kept.share)} of the change is kept{lost}"


def _bits_per_value(report: FileReport) -> float:
    n = sum(spec.n_elements for spec in report.write.index.tensors)
    return 8 * report.n_bytes / n if n else 0.0


def _compress_document(report: FileReport, output: str, restored: str | None, seconds: float) -> dict[str, Any]:
    index = report.write.index
    return {
        "output": output,
        "restored": restored,
        "bytes_in": report.n_bytes_in,
        "bytes_out": report.n_bytes,
        "ratio": report.ratio,
        "bits_per_value": _bits_per_value(report),
        "tensors": len(index.tensors),
        "method": index.method,
        "bound": index.bound,
        "update_kept": None if report.write.update_kept is None else report.write.update_kept.to_json(),
        "patched_values": report.write.n_patched,
        "matches": {
            name: {"name": origin.name, "dtype": origin.dtype, "shape": origin.shape}
            for name, origin in report.write.matches.items()
        },
        "without_base": report.write.without_base,
        "coded_alone": report.write.without_base,  # its name in release 0.1
        "choices": report.write.choices,
        "false_positives": report.write.false_positives,
        "divergence": report.write.divergence,
        "not_calibrated": report.write.uncalibrated,
        "gone": index.gone,
        "id": index.id,
        "base_id": index.base_id,
        "seconds": seconds,
        "bytes_per_second": report.n_bytes_in / seconds,
    }


def _compress_text(report: FileReport, output: str, restored: str | None, seconds: float) -> str:
    index, patched = report.write.index, report.write.n_patched
    return facts([
        ("wrote", output),
        ("restored", restored),
        ("size", f"{human_bytes(report.n_bytes_in)} of tensors -> {human_bytes(report.n_bytes)}: "
                 f"{report.ratio:.2f}x smaller, {_bits_per_value(report):.3f} bits per parameter"),
        ("method", index.method["name"]),
        ("bound", bound_text(index.bound) + (f", {patched:,} values stored exactly to keep it" if patched else "")),
        ("update", kept_text(report.write.update_kept)),
        ("others", others_text(index.method)),
        ("divergence", None if report.write.divergence is None else f"{report.write.divergence:.3g} nats a prediction"),
        ("not calibrated", some([f"{name} ({why})" for name, why in report.write.uncalibrated.items()])),
        ("smaller coding", report.write.choices_text or None),
        ("matched", report.write.matches_text),
        ("without base", some([f"{name} ({why})" for name, why in report.write.without_base.items()])),
        ("gone", some(index.gone)),
        ("false", some([f"{name}: {n:,} zeros come back as weights"
                        for name, n in report.write.false_positives.items()])),
        ("id", index.id),
        ("base id", index.base_id or "none needed"),
        ("time", f"{seconds:.2f} s, {human_bytes(report.n_bytes_in / seconds)}/s"),
    ])  # fmt: skip


def bound_text(document: Mapping[str, Any]) -> str:
    """A bound as the command line spells it, from an archive's index (untrusted)."""
    kind, value, resolved = document.get("kind", "unknown"), document.get("value"), document.get("resolved")
    if not isinstance(value, float):
        return str(kind)
    scope = ":tensor" if document.get("per") == "tensor" else ""
    return f"{kind}:{value:g}{scope}{_resolved_text(resolved)}"


def _resolved_text(resolved: Any) -> str:
    """What a bound relative to the update came to (untrusted)."""
    values = [value for value in (resolved if isinstance(resolved, list) else [resolved]) if isinstance(value, float)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if not high:
        return " (nothing changed: every bit)"
    return f" (|x - x'| <= {high:.4g})" if low == high else f" (|x - x'| <= {low:.4g} .. {high:.4g}, by tensor)"


def others_text(method: Mapping[str, Any]) -> str | None:
    """Settings besides the default one, from an archive's index (untrusted): how many tensors have each."""
    others = method.get("others")
    if not isinstance(others, list):
        return None
    texts = []
    for other in filter(lambda item: isinstance(item, dict), others):
        tensors, bound = other.get("tensors"), other.get("bound")
        n = len(tensors) if isinstance(tensors, list) else 0
        kept = bound_text(bound) if isinstance(bound, dict) else "unknown"
        texts.append(f"{n} {'tensor' if n == 1 else 'tensors'}: {safe(str(other.get('name')))}, {safe(kept)}")
    return "; ".join(texts) or None


def some(items: Sequence[str], n: int = 4) -> str | None:
    """How many there are, and the first few; None if there is none."""
    if not items:
        return None
    shown = ", ".join(safe(item) for item in items[:n])
    noun = "tensor" if len(items) == 1 else "tensors"
    return f"{len(items)} {noun}: {shown}" + (f", and {len(items) - n} more" if len(items) > n else "")


@click.command()
@click.argument("archive", metavar="IN.nz", type=_FILE)
@click.option("--base", type=_FILE, metavar="OLD", help="What the archive was made against, if anything.")
@click.option(
    "-o", "--output", required=True, type=_FILE, metavar="OUT", help="Its ending chooses the format; - is stdout."
)
@click.option("--to", "ending", metavar="FORMAT", help="safetensors, pt or npz, whatever OUT is called.")
@click.option("--keep-going", is_flag=True, help="Leave out tensors that cannot be read, name them, and exit with 1.")
@click.option("--max-output", callback=size_of, metavar="SIZE", help="Most that the tensors may take, such as 20GB.")
@force_option
@threads_option
@common_options
def decompress(
    archive: str,
    base: str | None,
    output: str,
    ending: str | None,
    keep_going: bool,
    max_output: int | None,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Restore an archive to a file of the format that it was made from, or to .safetensors, .pt or .npz; - is stdin."""
    started = time.perf_counter()
    on_stdout = check_streams([archive, base], [output])
    limits = None if max_output is None else Limits(output_bytes=max_output)
    with showing_warnings() as warned, progress("decompress", as_json) as callback:
        left_out = decompress_file(
            input_of(archive), output_of(output), None if base is None else input_of(base), limits,
            keep_going=keep_going, force=force, threads=threads, progress=callback,
            ending=None if ending is None else f".{ending.removeprefix('.')}",
        )  # fmt: skip
    seconds = time.perf_counter() - started
    n_bytes = None if on_stdout else size_on_disk(output)
    for name, error in left_out.items():
        warn(f"tensor {name!r} is left out: {error}")
    if as_json:
        print_json("decompress", {
            "output": output, "bytes_out": n_bytes, "seconds": seconds,
            "bytes_per_second": None if n_bytes is None else n_bytes / seconds,
            "left_out": {name: str(error) for name, error in left_out.items()}, "warnings": warned,
        }, err=on_stdout)  # fmt: skip
    else:
        show(_decompress_text(archive, output, n_bytes, left_out, seconds), err=on_stdout)
    return 1 if left_out or warned else 0


def _decompress_text(
    archive: str, output: str, n_bytes: int | None, left_out: Mapping[str, Error], seconds: float
) -> str:
    rows: list[tuple[str, object]] = [("wrote", output)]
    if n_bytes is not None:
        size = None if archive == "-" else size_on_disk(archive)
        rows.append(("size", f"{human_bytes(size)} -> {human_bytes(n_bytes)}" if size else human_bytes(n_bytes)))
    rows.append(("left out", some(list(left_out))))
    rate = "" if n_bytes is None else f", {human_bytes(n_bytes / seconds)}/s"
    return facts([*rows, ("time", f"{seconds:.2f} s{rate}")])
