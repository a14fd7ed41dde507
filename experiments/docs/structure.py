"""How the package is built: what a job passes through."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table

_COUNTS = {"modules": "modules", "calls": "calls", "stays": "hand-overs", "recipes": "recipes made"}


def handovers(result: Row) -> str:
    """Each job's counts, at each commit."""
    trees = result["trees"]
    jobs = list(next(iter(trees.values())))
    head = ["job", "counted", *trees]
    rows = [
        [f"`{job}`" if i == 0 else "", label, *(f"{found[job][key]:,}" for found in trees.values())]
        for job in jobs
        for i, (key, label) in enumerate(_COUNTS.items())
    ]
    return f"{table(head, rows)}\n\n{circumstances(result)}."
