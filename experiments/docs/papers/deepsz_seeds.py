"""The section "Ten trainings" of `docs/papers/deepsz.md`, from `results/deepsz_seeds.json`."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table
from experiments.docs.papers.deepsz_tables import TITLES, fold, in_points, lost


def trainings(result: Row) -> str:
    """A row for each training: what pruning lost, how many retrainings it took, what was found."""
    rows = []
    for network, found in result["networks"].items():
        for seed in found["seeds"]:
            last = seed["attempts"][-1]
            row = last["deepsz"]
            cells = ["nothing", "", ""]
            if row:
                cells = [f"**{fold(row['ratio'])}**", lost(row, "validation"), lost(row, "test")]
            rows.append([TITLES[network], seed["seed"], f"{100 * seed['original']['test']:.2f} %",
                         in_points(last["pruned"]["test_loss"]), len(seed["attempts"]) - 1, *cells])  # fmt: skip
    head = ["network", "seed", "original, test", "points lost by pruning, test", "further retrainings", "ratio",
            "points lost, held-out", "points lost, test"]  # fmt: skip
    return table(head, rows)


def sentences(result: Row) -> str:
    """Medians and failures."""
    said = []
    for network, found in result["networks"].items():
        s, paper = found["summary"], result["paper_ratios"][network]
        medians = (
            f"the median is {fold(s['median_ratio'])} at {in_points(s['median_loss'])} points on the test images; "
            if s["median_ratio"] else ""
        )  # fmt: skip
        said.append(
            f"* {TITLES[network]}: {s['as_small']} of {s['trainings']} trainings have at least the paper's {paper}x, "
            f"{s['within']} lose at most {in_points(result['max_loss'])} points on the test images, "
            f"{s['nothing']} have no result; {medians}{s['at_once']} needed no further retraining."
        )
    return "\n".join(said)


def context(result: Row) -> Row:
    """Figures of the section."""
    return {
        "trainings": trainings(result), "sentences": sentences(result), "circumstances": circumstances(result),
        "rounds": result["rounds"], "more": result["epochs_of_a_round"],
        "shares": "; ".join(
            f"{TITLES[network]} " + ", ".join(f"{100 * share:g} %" for share in steps[-1][0])
            for network, steps in result["shares"].items() if network in result["networks"]
        ),
    }  # fmt: skip
