"""Plots. matplotlib is an extra and is imported only when a plot is made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from nearzip.comparison import Comparison
from nearzip.errors import UsageError, missing_extra
from nearzip.fileio import atomic_file, check_free

__all__ = ["check_plot", "draw_comparison", "import_figure", "save_figure"]

_ENDINGS = (".png", ".pdf", ".svg")


def import_figure(extra: str, purpose: str) -> Any:
    """matplotlib's Figure, which draws without a display. Raises MissingExtraError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", extra, purpose) from None
    return Figure


def check_plot(path: str, force: bool, inputs: Iterable[str] = ()) -> None:
    """Check that a plot can be written and would not overwrite an input, before any work is done."""
    if os.path.splitext(path)[1].lower() not in _ENDINGS:
        raise UsageError(f"{path}: unknown ending for a plot; use one of {', '.join(_ENDINGS)}")
    import_figure("plot", f"{path}: a plot")
    check_free(path, force, inputs)


def save_figure(figure: Any, path: str | os.PathLike[str], force: bool) -> None:
    """Write a figure, whole or not at all; the ending chooses the format."""
    with atomic_file(path, force=force) as stream:
        figure.savefig(stream, format=os.path.splitext(path)[1][1:].lower(), dpi=150)


def draw_comparison(found: Comparison, a: str, b: str, path: str, force: bool) -> None:
    """Two panels: values of b over those of a with the linear fit, and how large the differences are."""
    figure = import_figure("plot", f"{path}: a plot")(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_values(left, found)
    _draw_histogram(right, found)
    left.set_xlabel(f"value in {_name(a)}")
    left.set_ylabel(f"value in {_name(b)}")
    save_figure(figure, path, force)


def _name(path: str) -> str:
    # A dollar sign would start a formula.
    return repr(os.path.basename(path))[1:-1].replace("$", r"\$")


def _draw_values(axes: Any, found: Comparison) -> None:
    x, y = found.sample
    axes.scatter(x, y, s=3, alpha=0.3, linewidths=0, color="tab:blue", rasterized=True)
    if x.size:
        ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
        axes.plot(ends, ends, color="0.6", linewidth=1, label="y = x")
        fit = found.total.fit
        if fit:
            label = f"y = {fit.slope:.5g} x {fit.intercept:+.2g}, r = {fit.r:.5f}"
            axes.plot(ends, fit.slope * ends + fit.intercept, color="tab:red", linewidth=1, linestyle="--", label=label)
        axes.legend(loc="upper left", frameon=False)
    similar = "" if found.total.ssim is None else f", SSIM {found.total.ssim:.5f}"
    axes.set_title(f"{found.total.n_values:,} values{similar}")


def _draw_histogram(axes: Any, found: Comparison) -> None:
    total = found.total
    decades = sorted(total.histogram)
    axes.bar([k + 0.5 for k in decades], [total.histogram[k] for k in decades], width=0.92, color="tab:blue")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)  # so that a bar of one value is visible
    ticks = range(min(decades, default=0), max(decades, default=0) + 2)
    axes.set_xticks(list(ticks), [f"$10^{{{k}}}$" for k in ticks])
    axes.set_xlabel("size of the difference |b - a|")
    axes.set_ylabel("number of values")
    axes.set_title(f"{total.unchanged:.1%} unchanged, largest difference {total.max_abs_error:.3g}")
