"""Speed and memory."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table

#: Load below which two cores are ours.
_IDLE = 1.0


def speeds(result: Row) -> str:
    """MB/s on one core and two."""
    run = result["end_to_end"]
    one, two = run["one_core_mb_s"], run["two_cores_mb_s"]
    sides = {
        f"nearzip, to verified bytes ({run['bits_per_parameter']:.2f} bits)": ("encode", "decode"),
        f"finer ({run['fine_bits_per_parameter']:.2f} bits)": ("fine encode", "fine decode"),
        f"lossless ({run['lossless_bits_per_parameter']:.2f} bits)": ("lossless encode", "lossless decode"),
        "lossless, no base": ("lossless encode, no base", "lossless decode, no base"),
        "zstd -3 on the raw weights": ("zstd -3 encode", "zstd -3 decode"),
    }
    rows = [[name, *(f"{one[side]:.0f}" for side in both)] for name, both in sides.items()]
    rows += [["a copy in memory", f"{one['memory copy']:.0f}", ""]]
    # By the clock, which means nothing where others use the cores as well.
    idle = (result["load_average"] or 0) < _IDLE
    if idle:
        rows += [["nearzip, two cores, by the clock", f"{two['encode']:.0f}", f"{two['decode']:.0f}"]]
    ratios = "; ".join(
        f"{name}: {row['encode_ratio']:.0f} and {row['decode_ratio']:.1f} times"
        for name, row in result["entropy_coding"].items()
    )
    shares = ", ".join(f"{name} {share:.0f} %" for name, share in result["profile_percent"]["encode"].items())
    scaling = (
        f"Quantizing, coding and checking blocks on two cores: {result['scaling']['two_cores_over_one']:.2f} times one."
    )
    busy = f"Measured while others used the machine (load {result['load_average']}), so two cores are not shown."
    return "\n\n".join(
        [
            f"Speed on {run['megabytes']:.0f} MB of weights ({result['source']}), MB of float32 per processor "
            "second of one core, medians:",
            table(["", "encode", "decode"], rows),
            f"Where encoding spends its time: {shares}.",
            scaling if idle else busy,
            f"The entropy coder against LZMA on the same symbols, encoding and decoding: {ratios}.",
            f"{circumstances(result)}.",
        ]
    )


def memory(result: Row) -> str:
    """File to file."""
    rows = [
        [f"{row['checkpoint_mb']:.0f} MB"]
        + [f"{row[step][what]:{form}}" for step in ("compress", "decompress")
           for what, form in (("seconds", ".1f"), ("anonymous_mb", ".0f"))]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["checkpoint", "compress, s", "its memory, MB", "decompress, s", "its memory, MB"]
    return "From file to file against a base (anonymous memory, start of Python included):\n\n" + table(head, rows)


#: Ratios up to it are what two runs of one commit give.
_NOISE = 1.02


def before_after(result: Row) -> str:
    """Processor time beside an earlier commit."""
    cases = result["cases"]
    rows = [
        [name, f"{row['before_ms']:.1f}", f"{row['after_ms']:.1f}", f"{row['ratio']:.2f}",
         " to ".join(f"{ratio:.2f}" for ratio in row["quartiles"])]
        for name, row in cases.items()
    ]  # fmt: skip
    head = ["call", f"{result['against']}, ms", f"{result['commit']}, ms", "ratio", "its quartiles"]
    slower = [f"{name} ({row['ratio']:.2f})" for name, row in cases.items() if row["ratio"] > _NOISE]
    larger = [name for name, row in cases.items() if "bytes" in row and row["bytes"]["after"] > row["bytes"]["before"]]
    memory = result["peak_memory_mb"]
    return "\n\n".join(
        [
            f"Processor time of one core at this commit beside {result['against']}, on the same "
            f"{result['megabytes']:.0f} MB and on 3,000 tensors of 256 values; the two take turns, "
            f"{result['pairs']} pairs of processes, medians of {result['rounds']} calls in each:",
            table(head, rows),
            f"Slower by more than {100 * (_NOISE - 1):.0f} %: {', '.join(slower) or 'nothing'}. "
            f"Larger: {', '.join(larger) or 'nothing'}. Most memory from file to file: {memory['after']:.0f} MB, "
            f"before {memory['before']:.0f} MB. Load of the machine: {result['load_average']}. "
            f"{circumstances(result)}.",
        ]
    )
