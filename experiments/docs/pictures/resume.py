"""Size of a training state against what the resumed training loses."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from experiments.claims.resume.resume import BYTES
from experiments.docs.markdown import Row
from experiments.docs.resume import GOAL, levels_of_excp, levels_of_nearzip


def draw(result: Row) -> Figure:
    """The curve of size against difference, in deviations from seed to seed, with its intervals."""
    cases = result["cases"]
    columns = 4 if len(cases) > 6 else 3
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), layout="constrained", squeeze=False)
    for place, (name, case) in zip(axes.flat, cases.items(), strict=False):
        unit = case["rows"][0]["deviation"]
        place.axhspan(-0.25, 0.25, color="#dddddd", label="equivalent")
        ours = sorted(levels_of_nearzip(case), key=lambda row: -row["bytes"]["whole"])  # also those measured later
        for rows, label, mark in ((ours, "nearzip", "o-"), (levels_of_excp(case), "ExCP-like", "s--")):
            at = [8 * row["bytes"]["whole"] / case["parameters"] for row in rows]
            middle = [row["difference"] / unit for row in rows]
            half = [(row["interval"][1] - row["interval"][0]) / 2 / unit for row in rows]
            place.errorbar(at, middle, half, fmt=mark, markersize=4, capsize=2, label=label)
        bits = 8 * BYTES[case["case"]["optimizer"]]
        place.axvline(bits / GOAL, color="#888888", linewidth=0.8, linestyle=":", label=f"{GOAL} times smaller")
        place.set(title=name, xscale="log", xlabel="bits per parameter", ylabel="difference / deviation")
        place.set_yscale("symlog", linthresh=0.5)
        place.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8]))
        place.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        place.xaxis.set_minor_locator(NullLocator())
    for place in list(axes.flat)[len(cases) :]:
        place.axis("off")
    axes.flat[0].legend(fontsize=7)
    return figure
