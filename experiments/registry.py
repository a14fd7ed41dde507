"""Every claim of the documentation: the command that measures it and the results that it writes.

To add one: write `claims/TOPIC/NAME.py` with `main(arguments)` that ends in `record.save`, add a line here, and, where
a page shows it, a block to `docs/catalogue.py`. The table in README.md beside this file and in docs/experiments.md is
made from these lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """`text`: what is claimed; `target`: module below `experiments`, and its function if that is not `main`."""

    text: str
    target: str
    results: tuple[str, ...]
    arguments: str = ""


_DATA = "--data DIR"


def _measured(*names: str) -> tuple[str, ...]:
    """Those results that are there: some take a machine that not every release had."""
    return tuple(name for name in names if (Path(__file__).parent / "results" / f"{name}.json").is_file())


#: Command to claim.
CLAIMS = {
    "fidelity": Claim(
        "At the same divergence nearzip takes fewer bits than other methods; calibrated, several times fewer",
        "claims.bits.fidelity", ("fidelity",), f"{_DATA} --share 0.2",
    ),
    "limit": Claim(
        "How far calibrated archives are from the Gaussian rate-distortion limit",
        "claims.bits.limit", ("limit",), _DATA,
    ),
    "size": Claim(
        "At the same bound updates are smaller than Delta-DNN's",
        "claims.bits.size", ("size",), _DATA,
    ),
    "lossless": Claim(
        "Bit-exact, files are smaller than those of other lossless programs, with a base and without",
        "claims.bits.lossless", ("lossless",), _DATA,
    ),
    "hub": Claim(
        "An update of all values takes fewer bytes than the chunks that a deduplicating store transfers for it",
        "claims.bits.hub", ("hub",), _DATA,
    ),
    "real_files": Claim(
        "Weights that ship in public packages take fewer bytes than by other lossless programs in all 48 cases",
        "claims.bits.real_files", ("real_files",),
    ),
    "rates": Claim(
        "Finer steps for small tensors pay; points of E8 do where few values are not zero",
        "claims.bits.rates", ("rates", "rates_alone"), _DATA,
    ),
    "repeat": Claim("Two runs measure the same", "claims.bits.repeat", ("repeat",), _DATA),
    "speed": Claim(
        "Encoding and decoding keep up with memory and disks",
        "claims.speed.speed", ("speed",), _DATA,
    ),
    "speed_before_after": Claim(
        "Calls take about the processor time, bytes and memory that they took at an earlier commit",
        "claims.speed.before_after", ("speed_before_after",), f"{_DATA} --against COMMIT",
    ),
    "throughput": Claim(
        "nearzip is faster than the programs that make files of its size",
        "claims.speed.throughput", ("throughput", "throughput_tiled"), f"{_DATA} [--tiled]",
    ),
    "memory": Claim(
        "Memory does not grow with the size of a checkpoint",
        "claims.speed.memory", ("memory",),
    ),
    "cost_model": Claim(
        "Costs are a constant and an amount for each parameter",
        "claims.speed.cost_model", ("cost_model",),
    ),
    "small": Claim(
        "Archives of small tensors cost little before the first value",
        "claims.speed.small", ("small",),
    ),
    "budget": Claim(
        "Plans keep their accuracy budget, and most are smaller than those of the papers' searches",
        "claims.accuracy.budget", ("budget",), _DATA,
    ),
    "roundings": Claim(
        "Searches that ask the network how to round find smaller files than those of a bound",
        "claims.accuracy.roundings", ("roundings",), _DATA,
    ),
    "gates": Claim(
        "With a confidence, plans keep their accuracy budget on data never seen",
        "claims.accuracy.gates", ("gates",),
    ),
    "condense_recovery": Claim(
        "What the L-C optimizer recovers, beside a gradual schedule and one-shot pruning at the same epochs",
        "claims.condense.recovery", ("condense_recovery",), _DATA,
    ),
    "condense_search": Claim(
        "Five trainings find nearly the smallest share within an accuracy budget",
        "claims.condense.search", ("condense_search",), _DATA,
    ),
    "condense_files": Claim(
        "Condensed networks are stored in fewer bytes, positions and all, than two for each nonzero",
        "claims.condense.files", ("condense_files",), _DATA,
    ),
    "condense_networks": Claim(
        "Thinned networks give the outputs of masked ones, and files rebuild them bit for bit, for every network",
        "claims.condense.networks", ("condense_networks",),
    ),
    "behaviour": Claim(
        "Methods of equal size and accuracy differ in what they change",
        "claims.accuracy.behaviour", ("behaviour",), _DATA,
    ),
    "behaviour_time": Claim(
        "All measures of 500 images take less than five minutes, a certificate little more than an evaluation",
        "claims.accuracy.behaviour_time", _measured("behaviour_time"), _DATA,
    ),
    "objective": Claim(
        "Fine-tuned with an objective, a pruned network changes fewer predictions than with cross entropy",
        "claims.accuracy.objective", _measured("objective"), _DATA,
    ),
    "condense_speed": Claim(
        "Thinned networks are faster within an accuracy budget, measured",
        "claims.condense.speed", ("condense_speed",), _DATA,
    ),
    "calibration": Claim(
        "Calibration costs some evaluation passes",
        "claims.accuracy.calibration", ("calibration",), _DATA,
    ),
    "calibration_scale": Claim(
        "What calibration costs by the size of a language model, and within a limit of memory",
        "claims.accuracy.calibration_scale", _measured("calibration_scale"), _DATA,
    ),
    "federated": Claim(
        "Federated rounds come near FedAvg's accuracy at a hundredth of its bits, both ways",
        "claims.federated.accuracy", ("federated",), _DATA,
    ),
    "federated_costs": Claim(
        "A residual is compressed and restored in a fraction of a second; a server keeps replies compressed",
        "claims.federated.costs", ("federated_costs",),
    ),
    "store": Claim(
        "A store is small, restores quickly and verifies at the speed of the disk",
        "claims.store.store", ("store",), _DATA,
    ),
    "store_faults": Claim(
        "A store survives crashes, full disks and failing backends",
        "claims.store.store_faults", ("store_faults",),
    ),
    "store_fire": Claim(
        "A store whose writers, readers, pruners and repairers are killed at random for an hour loses nothing",
        "claims.store.store_fire", ("store_fire",), "--record",
    ),
    "transmission": Claim(
        "A client that pulls updates waits less than one that fetches networks",
        "claims.store.transmission", ("transmission",), _DATA,
    ),
    "resume": Claim(
        "A training resumed from a small state ends where the exact one does",
        "claims.resume.resume", ("resume",), f"{_DATA} [--seconds N]",
    ),
    "save_cost": Claim(
        "A save blocks the training for little more than a copy",
        "claims.resume.save_cost", ("save_cost",), _DATA,
    ),
    "save_memory": Claim(
        "A save takes little memory beyond its snapshot",
        "claims.resume.save_memory", ("save_memory",),
    ),
    "bound_truth": Claim(
        "Bounds are kept, as another implementation checks in rational numbers",
        "claims.trust.bound_truth", ("bound_truth",), "--arrays 100000",
    ),
    "promises": Claim(
        "Every tensor keeps its own bound by every way in, and no archive is larger than what is at hand",
        "claims.trust.promises", ("promises",),
    ),
    "damage": Claim(
        "No change of any byte of an archive gives wrong values; hostile files take no memory",
        "claims.trust.damage", ("damage",),
    ),
    "damaged_many": Claim(
        "Thousands of damaged archives in one small process: every error named, no threads or files left",
        "claims.trust.damaged_many", ("damaged_many",),
    ),
    "damage_peers": Claim(
        "Other formats return wrong values or crash on the same damage",
        "claims.trust.damage:main_peers", ("damage_peers",),
    ),
    "handovers": Claim(
        "Recipes are made once, not at every step of the way",
        "claims.structure.handovers", ("handovers",), "[--tree NAME=FOLDER] [--keep]",
    ),
    "delta_dnn": Claim(
        "Delta-DNN's tables and figures",
        "papers.delta_dnn.measure", ("delta_dnn",), _DATA,
    ),
    "deepsz": Claim("DeepSZ's tables and figures", "papers.deepsz.measure", ("deepsz",), _DATA),
    "deepsz_seeds": Claim(
        "DeepSZ's ratios within its loss on ten trainings, by a rule fixed beforehand",
        "papers.deepsz.seeds", ("deepsz_seeds",), _DATA,
    ),
    "deepsz_more": Claim(
        "What DeepSZ's paper says without a table: pruned matrices, ratios asked for, everything inside the clock",
        "papers.deepsz.more", ("deepsz_more",), _DATA,
    ),
    "qd_compressor": Claim(
        "QD-Compressor's and LC-Checkpoint's tables and figures",
        "papers.qd.measure", ("qd_compressor",), _DATA,
    ),
    "feedback": Claim(
        "QD-Compressor's error feedback and recovery",
        "papers.qd.feedback", ("qd_feedback",), f"{_DATA} [--seconds N]",
    ),
    "feedback_time": Claim(
        "QD-Compressor's Table 10",
        "papers.qd.feedback:main_times", ("qd_feedback_time",), _DATA,
    ),
    "papers": Claim(
        "Tables of Delta-DNN's and QD-Compressor's papers that need whole trainings",
        "papers.scale.measure", _measured("papers_small", "papers_paper"), "--scale small --data DIR",
    ),
    "dataset_codecs": Claim(
        "At equal divergence our files of images are smaller than WebP's, JPEG's and ZFP's; Table I and Figure 7",
        "claims.datasets.codecs", ("dataset_codecs",), f"{_DATA} --images 1000",
    ),
    "dataset_for_network": Claim(
        "Images rounded for a network: far smaller at equal divergence, and about as large for other networks",
        "claims.datasets.for_network", ("dataset_for_network",), f"{_DATA} --images 1000",
    ),
    "dataset_speed": Claim(
        "In batches our images are decoded faster than Pillow decodes JPEG files; ZFP's coefficients are the library's",
        "claims.datasets.speed", ("dataset_speed",), f"{_DATA} --images 400",
    ),
    "dataset_subsets": Claim(
        "A subset of the training images, well chosen, trains as well as all of them",
        "claims.datasets.subsets", ("dataset_subsets",), _DATA,
    ),
    "dataset_subsets_cifar": Claim(
        "The same on CIFAR-10",
        "claims.datasets.subsets:main_cifar", _measured("dataset_subsets_cifar"), _DATA,
    ),
    "dataset_coefficients": Claim(
        "Networks learn from transform coefficients about as well as from pixels; Table II",
        "claims.datasets.coefficients", ("dataset_coefficients",), _DATA,
    ),
    "dataset_attributions": Claim(
        "What a network looks at on decoded images, by codec at equal size; Figure 8",
        "claims.datasets.attributions", ("dataset_attributions",), _DATA,
    ),
    "trace_times": Claim("How long the sets of traces take", "lab.trace_times", ("trace_times",), _DATA),
}  # fmt: skip

#: Results that other scripts write.
OTHERS = {"fuzz": ("The native decoders and the readers survive fuzzing", "tests/fuzz/run")}

#: Commands that measure nothing.
TOOLS = {"docs": "docs.writing", "train": "lab.train", "traces": "lab.trace_sets", "check_traces": "lab.traces"}
#: Names from before one command wrote all pages.
_OLD = dict.fromkeys(("page", "store_page", "tables", "training_page"), "docs.writing")

COMMANDS = {name: claim.target for name, claim in CLAIMS.items()} | TOOLS | _OLD

_TRIED = "its results are in docs/tried.md, its code in Git"
REMOVED = {"agreement": _TRIED, "lattices": _TRIED, "tried": _TRIED}
