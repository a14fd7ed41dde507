"""Training times of the sets of traces."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table


def trace_times(result: Row) -> str:
    """Training times of the sets of traces."""
    rows = []
    for name, networks in result["sets"].items():
        cells = [f"{network} {row['seconds']:.0f}{' (estimated)' if row['estimated'] else ''}"
                 for network, row in networks.items()]  # fmt: skip
        rows.append([f"`{name}`", f"{sum(row['seconds'] for row in networks.values()) / 60:.1f}", ", ".join(cells)])
    return table(["set", "minutes", "seconds of each network"], rows) + f"\n\n{circumstances(result)}."
