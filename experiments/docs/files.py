"""Weights of public packages beside other lossless programs."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table


def _smallest(row: Row) -> tuple[str, int]:
    """The smallest of the other programs that restore the file."""
    sizes = {name: found["bytes"] for name, found in row["programs"].items() if "bytes" in found}
    name = min(sizes, key=sizes.__getitem__)
    return name, sizes[name]


def _cell(row: Row, program: str) -> str:
    found = row["programs"][program]
    return f"{found['bytes'] / 1000:,.0f}" if "bytes" in found else "-"


def _rows(rows: list[Row], programs: list[str]) -> list[list[str]]:
    cells = []
    for row in rows:
        ours, (_, other) = row["nearzip"]["bytes"], _smallest(row)
        name = f"{row['package']} {row['release']}: `{row['file']}`"
        if row["base"] is not None:
            name += f" after `{row['base'].replace('/', ' ').removeprefix(row['package'] + '-')}`"
        sizes = [_cell(row, program) for program in programs]
        cells.append([name, f"{row['n_bytes'] / 1000:,.0f}", f"**{ours / 1000:,.0f}**", *sizes, f"{other / ours:.3f}"])
    return cells


def _seconds(rows: list[Row], programs: list[str]) -> str:
    """MB/s over all files, both ways."""
    cells = []
    n_bytes = sum(row["n_bytes"] for row in rows)
    for name in ["nearzip", *programs]:
        runs = [row["nearzip"] if name == "nearzip" else row["programs"][name] for row in rows]
        if all("bytes" in run for run in runs):
            speeds = [n_bytes / 1e6 / sum(run[way] for run in runs) for way in ("encode_s", "decode_s")]
            cells.append([name, *(f"{speed:,.1f}" for speed in speeds)])
    return table(["program", "compresses, MB/s", "restores, MB/s"], cells)


def _absent(rows: list[Row], programs: list[str]) -> str:
    """Programs without a single result, and what they said."""
    absent = [name for name in rows[0]["programs"] if name not in programs]
    said = {name: rows[0]["programs"][name]["error"].split("...")[-1].strip() for name in absent}
    return "Not measured: " + "; ".join(f"{name} (`{text}`)" for name, text in said.items()) + "." if said else ""


def real_files(result: Row) -> str:
    """Bytes of every file, and speeds over all of them."""
    rows = result["rows"]
    programs = [name for name in rows[0]["programs"] if any("bytes" in row["programs"][name] for row in rows)]
    alone, updates = ([row for row in rows if (row["base"] is None) == first] for first in (True, False))
    first = sum(row["nearzip"]["bytes"] < _smallest(row)[1] for row in rows)
    head = ["file", "kB", "nearzip", *programs, "best other / nearzip"]
    exact = sum(row["nearzip"]["byte_for_byte"] for row in rows)
    return "\n\n".join(
        [
            f"kB of compressed files. nearzip is the smallest in {first} of {len(rows)} cases.",
            table(head, _rows(alone, programs)),
            "Updates. Programs without a notion of a base get the exclusive or of the two files, where these have one "
            "length; zstd has the older file as its prefix (`--patch-from`).",
            table(head, _rows(updates, programs)),
            "Speed over all files above the line, whole files read and written by nearzip, in memory by the others:",
            _seconds(alone, programs),
            f"nearzip restored {exact} of {len(rows)} files byte for byte, the others, of `torch.save`, with the same "
            "values and types.",
            _absent(rows, programs),
            f"{circumstances(result)}.",
        ]
    )
