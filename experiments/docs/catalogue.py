"""What the documentation shows of the results: blocks between markers, whole pages from templates, and pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.docs import (
    accuracy,
    behaviour,
    bits,
    claims,
    condense,
    costs,
    datasets,
    federated,
    files,
    methods,
    results,
    resume,
    store,
    structure,
    traces,
    tried,
    trust,
)
from experiments.docs.papers import deepsz, delta_dnn, feedback, qd, trainings
from experiments.lab import record
from experiments.registry import CLAIMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Block:
    """Text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a page; `render` takes the results in order."""

    page: str
    name: str
    results: tuple[str, ...]
    render: Callable[..., str]


@dataclass(frozen=True)
class Page:
    """A whole page; `context` takes the results in order and gives the template's variables."""

    page: str
    results: tuple[str, ...]
    context: Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """An image; `draw` is a function of a module below `experiments.docs.pictures`, imported when it is called."""

    image: str
    results: tuple[str, ...]
    draw: str
    arguments: tuple[Any, ...] = ()
    dpi: int = 100

    @property
    def module(self) -> str:
        return f"experiments.docs.pictures.{self.draw.partition(':')[0]}"


BLOCKS = (
    Block("README.md", "figures", ("lossless", "fidelity", "hub"), bits.readme),
    Block("experiments/README.md", "claims", (), lambda: claims.claims("experiments/README.md", shown())),
    Block("docs/experiments.md", "claims", (), lambda: claims.claims("docs/experiments.md", shown())),
    Block("docs/calibration.md", "calibrated", ("fidelity",), bits.calibrated),
    Block("docs/calibration.md", "limit", ("limit", "fidelity"), bits.limit),
    Block("docs/calibration.md", "cost", ("calibration",), accuracy.calibration),
    Block("docs/calibration.md", "scale", ("calibration_scale",), accuracy.calibration_scale),
    Block("docs/cost-model.md", "cost-model", ("cost_model",), costs.measured),
    Block("docs/cost-model.md", "computed", ("cost_model",), costs.computed),
    Block("docs/cost-model.md", "small", ("small",), costs.small),
    Block("docs/condense.md", "condense-recovery", ("condense_recovery",), condense.recovery),
    Block("docs/condense.md", "condense-search", ("condense_search",), condense.search),
    Block("docs/condense.md", "condense-files", ("condense_files",), condense.files),
    Block("docs/condense.md", "condense-speed", ("condense_speed",), condense.speed),
    Block("docs/condense.md", "condense-paper", ("condense_files", "condense_speed"), condense.paper),
    Block("docs/condense.md", "condense-networks", ("condense_networks",), condense.networks),
    Block("docs/damage.md", "peers", ("damage_peers",), trust.damage),
    Block("docs/damage.md", "runs", ("damage", "fuzz"), trust.long_runs),
    Block("docs/damage.md", "many", ("damaged_many",), trust.damaged_many),
    Block("docs/methods/nearzip.md", "promises", ("promises",), trust.promises),
    Block("docs/decisions/016-one-coding.md", "handovers", ("handovers",), structure.handovers),
    Block("docs/experiments.md", "trace-times", ("trace_times",), traces.trace_times),
    Block("docs/store.md", "figures", ("store", "transmission", "store_faults"), store.figures),
    Block("docs/store.md", "fire", ("store_fire",), store.fire),
    Block("docs/training.md", "memory", ("save_memory",), resume.memory),
    Block("docs/tried.md", "rules", ("rates",), tried.rules),
    Block("docs/tried.md", "lattices", ("lattices",), tried.lattices),
    Block("docs/tried.md", "streams", ("lattices",), tried.streams),
    Block("docs/tried.md", "calibration", ("tried",), tried.calibration),
    Block("docs/tried.md", "agreement", ("agreement",), tried.agreement),
    Block("docs/correctness.md", "behaviour", ("behaviour",), behaviour.behaviour),
    Block("docs/correctness.md", "behaviour-time", ("behaviour_time",), behaviour.seconds),
    Block("docs/correctness.md", "objective", ("objective",), behaviour.objective),
    Block("docs/tune.md", "roundings", ("roundings",), accuracy.roundings),
    Block("docs/tune.md", "gates", ("gates",), accuracy.gates),
    Block("docs/federated-results.md", "accuracy", ("federated",), federated.accuracy),
    Block("docs/federated-results.md", "sweep", ("federated",), federated.sweep),
    Block("docs/federated-results.md", "faults", ("federated",), federated.faults),
    Block("docs/federated-results.md", "residuals", ("federated",), federated.residuals),
    Block("docs/federated-results.md", "costs", ("federated_costs",), federated.costs),
    Block("docs/tune.md", "budget", ("budget",), accuracy.budgets),
    Block("docs/papers/datasets.md", "sizes", ("dataset_codecs",), datasets.sizes),
    Block("docs/papers/datasets.md", "tolerances", ("dataset_codecs",), datasets.table_1),
    Block("docs/papers/datasets.md", "tolerances-paper", (), datasets.paper_1),
    Block("docs/papers/datasets.md", "norms", ("dataset_codecs",), datasets.norms),
    Block("docs/papers/datasets.md", "speed", ("dataset_speed",), datasets.speed),
    Block("docs/papers/datasets.md", "subsets", ("dataset_subsets",), datasets.subsets),
    Block("docs/papers/datasets.md", "subsets-cifar", ("dataset_subsets_cifar",), datasets.subsets),
    Block("docs/papers/datasets.md", "coefficients", ("dataset_coefficients",), datasets.coefficients),
    Block("docs/papers/datasets.md", "from-disk", ("dataset_coefficients",), datasets.from_disk),
    Block("docs/papers/datasets.md", "for-network", ("dataset_for_network", "dataset_codecs"), datasets.for_network),
    Block("docs/papers/datasets.md", "attributions", ("dataset_attributions",), datasets.attributions),
    Block("docs/methods/nearzip.md", "lossless", ("lossless",), bits.lossless),
    Block("docs/real-files.md", "real-files", ("real_files",), files.real_files),
    Block("docs/methods/nearzip.md", "rates", ("rates",), bits.rates),
    Block("docs/methods/nearzip.md", "points", ("rates",), bits.points),
    Block("docs/methods/nearzip.md", "shares", ("rates_alone",), bits.largest_shares),
    Block("docs/methods/deep-compression.md", "measured", ("deepsz",), methods.deep_compression),
    Block("docs/methods/weightless.md", "measured", ("deepsz",), methods.weightless),
    Block("docs/methods/deepsz.md", "measured", ("deepsz",), methods.deepsz),
    Block("docs/methods/delta-dnn.md", "measured", ("delta_dnn",), methods.delta_dnn),
    Block("docs/methods/qd-compressor.md", "measured", ("qd_compressor",), methods.qd_compressor),
    Block("docs/methods/lc-checkpoint.md", "measured", ("qd_compressor",), methods.lc_checkpoint),
    Block("docs/methods/foreign.md", "raw", ("qd_compressor", "delta_dnn", "deepsz"), methods.raw_floats),
    Block("docs/methods/foreign.md", "measured", ("fidelity",), methods.foreign),
    Block("docs/methods/baselines.md", "measured", ("fidelity",), methods.baselines),
)  # fmt: skip

PAGES = (
    Page(
        "docs/results.md",
        (
            "fidelity",
            "throughput",
            "throughput_tiled",
            "repeat",
            "size",
            "speed",
            "memory",
            "bound_truth",
            "speed_before_after",
            "limit",
        ),
        results.context,
    ),
    Page("docs/resume.md", ("resume", "save_cost"), resume.context),
    Page("docs/papers/deepsz.md", ("deepsz", "deepsz_seeds", "deepsz_more"), deepsz.context),
    Page("docs/papers/delta-dnn.md", ("delta_dnn",), delta_dnn.context),
    Page("docs/papers/qd-compressor.md", ("qd_compressor",), qd.context),
    Page("docs/papers/qd-feedback.md", ("qd_feedback", "qd_feedback_time"), feedback.context),
    Page("docs/papers/trainings.md", CLAIMS["papers"].results, trainings.context),
)


@functools.cache
def load(name: str) -> dict[str, Any]:
    """A result, read once."""
    return record.load(name)


def pictures() -> tuple[Picture, ...]:
    """All images made from results."""
    fidelity = tuple(
        Picture(f"docs/images/{results.picture_name(pair)}", ("fidelity", "limit"), "fidelity:draw", (pair,), 110)
        for pair in load("fidelity")["pairs"]
    )
    return (
        *fidelity,
        Picture("docs/images/resume.png", ("resume",), "resume:draw", dpi=80),
        Picture("docs/images/deepsz-figures.png", ("deepsz",), "deepsz:draw", dpi=110),
        Picture("docs/images/delta-dnn-figure-1.png", ("delta_dnn",), "delta_dnn:draw_likeness"),
        Picture("docs/images/delta-dnn-figure-3.png", ("delta_dnn",), "delta_dnn:draw_accuracy"),
        Picture("docs/images/delta-dnn-figure-4.png", ("delta_dnn",), "delta_dnn:draw_ratio"),
        Picture("docs/images/qd-compressor-figure-12.png", ("qd_compressor",), "qd:draw_ratios"),
        Picture("docs/images/qd-figure-11.png", ("qd_feedback",), "qd:draw_accuracy", dpi=90),
    )


def draw(picture: Picture) -> Figure:
    """Import the picture's module, and matplotlib with it, and draw."""
    import importlib

    module = importlib.import_module(picture.module)
    figure: Figure = getattr(module, picture.draw.partition(":")[2])(
        *(load(name) for name in picture.results), *picture.arguments
    )
    return figure


def shown() -> dict[str, list[str]]:
    """Pages by the result that they show."""
    found: dict[str, list[str]] = {}
    for part in (*BLOCKS, *PAGES):
        for name in part.results:
            found.setdefault(name, []).append(part.page)
    return found
