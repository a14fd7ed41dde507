"""What steps cost by number of parameters: measured, and computed for networks that do not fit this machine."""

from __future__ import annotations

from typing import Any

from experiments.docs.markdown import Row, circumstances, table

#: Networks of the table: their name, parameters, and machines.
_NETWORKS = (("1 B", 1e9, 1), ("70 B", 70e9, 64), ("1 T", 1e12, 1024))


def _cost(line: dict[str, float], n: float) -> float:
    return max(0.0, line["constant"]) + line["each"] * n


def measured(result: Row) -> str:
    """Every step at the largest size, for each parameter, and the middle size over the line."""
    rows = []
    for step, found in result["steps"].items():
        largest, of = found["rows"][-1], found["lines"]
        rows.append(
            [
                step, f"{largest['parameters'] / 1e6:.1f}", f"{largest['seconds']:.2f}",
                f"{1e9 * of['seconds']['each']:.2f}", f"{of['seconds']['middle_over_line']:.2f}",
                f"{largest['memory_bytes'] / 1e6:.0f}", f"{abs(of['memory_bytes']['each']):.2f}",
                f"{of['memory_bytes']['middle_over_line']:.2f}",
                f"{8 * of['bytes']['each']:.2f}", f"{of['bytes']['middle_over_line']:.3f}",
            ]
        )  # fmt: skip
    head = ["step", "M parameters", "seconds", "ns a parameter", "middle / line", "memory (MB)", "bytes a parameter",
            "middle / line", "bits a parameter", "middle / line"]  # fmt: skip
    return (
        "Processor seconds of one thread and the most anonymous memory beyond what the process had before, at the "
        "largest of three sizes; amounts for each parameter from the smallest and the largest, and the middle size "
        f"over that line. Bound {result['bound']}, updates of spread 1e-3; bits are those of the archives that a step "
        "reads or writes.\n\n" + table(head, rows) + f"\n\n{circumstances(result)}."
    )


def computed(result: Row) -> str:
    """The same costs of one machine of N, which has an Nth of the parameters."""
    rows = []
    for name, n, machines in _NETWORKS:
        for step, found in result["steps"].items():
            if step == "calibrate" and machines > 1:
                continue
            rows.append([name, machines, step, *_cells(found["lines"], n / machines)])
    head = ["parameters", "machines", "step", "core seconds", "memory (GB)", "archives (GB)"]
    return "Of one machine, on one core:\n\n" + table(head, rows)


def _cells(of: dict[str, Any], n: float) -> list[str]:
    seconds, memory, moved = (_cost(of[key], n) for key in ("seconds", "memory_bytes", "bytes"))
    return [f"{seconds:,.0f}", f"{memory / 1e9:.2f}", f"{moved / 1e9:.2f}"]


def small(result: Row) -> str:
    """What is stored besides the blocks, in three forms, and how long opening takes."""
    rows = []
    for row in result["rows"]:
        columns, json = row["columns"], row["json"]
        rows.append(
            [
                f"{row['tensors']:,}", f"{row['blocks']:,}", f"{json['bytes'] - row['blocks']:,}",
                f"{columns['bytes'] - row['blocks']:,}", f"{row['wire'] - row['blocks']:,}",
                f"{json['open_ms']:.1f}", f"{columns['open_ms']:.1f}", f"{json['first_ms']:.1f}",
                f"{columns['first_ms']:.1f}",
            ]
        )  # fmt: skip
    head = ["tensors", "blocks (bytes)", "besides, JSON", "besides, columns", "besides, wire form",
            "open, JSON (ms)", "open, columns", "and first tensor, JSON", "and first tensor, columns"]  # fmt: skip
    commands = ", ".join(f"`{name}` {ms:.0f}" for name, ms in result["commands_ms"].items())
    return (
        "Lossless updates with the index of format 3, in columns, beside the JSON of formats 1 and 2 and a federated "
        "message, which has neither names nor a digest for each block; times of complete archives, in processor "
        "milliseconds.\n\n" + table(head, rows)
        + f"\n\nWhole commands of an archive of six tensors, processor milliseconds: {commands}. "
        f"{circumstances(result)}."
    )  # fmt: skip
