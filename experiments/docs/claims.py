"""The table of claims: what is claimed, how it is measured, where the result is and which pages show it."""

from __future__ import annotations

import os

from experiments.docs.markdown import table
from experiments.registry import CLAIMS, OTHERS


def claims(page: str, shown: dict[str, list[str]]) -> str:
    """`shown`: pages by result; `page`: where the table goes, which its links start from."""

    def linked(path: str) -> str:
        return f"[{path.removeprefix('docs/')}]({os.path.relpath(path, os.path.dirname(page) or '.')})"

    def row(text: str, command: str, results: tuple[str, ...]) -> list[str]:
        pages = dict.fromkeys(path for name in results for path in shown.get(name, ()))
        files = ", ".join(f"`{name}.json`" for name in results)
        return [text, f"`{command}`", files, ", ".join(linked(path) for path in pages)]

    rows = [row(claim.text, f"scripts/bench {name} {claim.arguments}".strip(), claim.results)
            for name, claim in CLAIMS.items()]  # fmt: skip
    rows += [row(text, command, (name,)) for name, (text, command) in OTHERS.items()]
    return table(["claim", "measured by", "in `experiments/results`", "pages"], rows)
