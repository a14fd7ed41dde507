"""Pages under `docs/papers`, made from `results/*.json`: our figures in a paper's layout beside the paper's own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from experiments.docs import (
    deepsz as deepsz_page,
)
from experiments.docs import (
    delta_dnn as delta_dnn_page,
)
from experiments.docs import (
    feedback as feedback_page,
)
from experiments.docs import (
    qd as qd_page,
)
from experiments.lab.record import RESULTS

_DOCS = RESULTS.parent.parent / "docs"

#: Name of the result and of the page: what writes it, given the result and the folder of the docs.
PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "deepsz": deepsz_page.page,
    "delta_dnn": delta_dnn_page.page,
    "qd_compressor": qd_page.page,
    "qd_feedback": feedback_page.page,
}


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench papers", description=__doc__).parse_args(arguments)
    (_DOCS / "papers").mkdir(exist_ok=True)
    for name, page in PAGES.items():
        source = RESULTS / f"{name}.json"
        if source.is_file():
            text = page(json.loads(source.read_text()))
            (_DOCS / "papers" / f"{name.replace('_', '-')}.md").write_text(text)
