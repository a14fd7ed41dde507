"""`nearzip store report`: a store as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import click

from nearzip.cli.console import facts, human_bytes, print_json, progress, show, warn
from nearzip.cli.running import common_options
from nearzip.cli.transfer import force_option, threads_option
from nearzip.report import write_report
from nearzip.store import Store
from nearzip.store.selectors import is_selector

__all__ = ["report"]


@click.command()
@click.argument("url")
@click.option("-o", "--output", required=True, type=click.Path(path_type=str), metavar="OUT.html")
@click.option("--original", "originals", multiple=True, metavar="SELECTOR=FILE",
              help="The file committed as a version; shows its error beside the bound. Repeatable.")  # fmt: skip
@click.option("--keep", "rules", multiple=True, metavar="RULE",
              help="Show what pruning with this rule would free. Repeatable.  [default: common rules]")  # fmt: skip
@click.option("--newest", type=click.IntRange(min=1), default=100, show_default=True,
              help="Number of newest versions to include in the space by tensor.")  # fmt: skip
@force_option
@threads_option
@common_options
def report(
    url: str,
    output: str,
    originals: Sequence[str],
    rules: Sequence[str],
    newest: int,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Write one HTML page about a store: sizes, chains, metrics, errors, space by tensor, what pruning would free.

    The page is self-contained: no scripts, nothing to fetch.
    """
    opened = Store(url, threads=threads)
    with progress("store report", as_json) as callback:
        found = write_report(
            opened, output, originals=_originals(originals), rules=rules, newest=newest, force=force, progress=callback
        )
    for text in (*found.damage, *found.failed_sections.values()):
        warn(text)
    worst = max((row.share for row in found.errors if row.share is not None), default=None)
    if as_json:
        print_json("store report", {
            "url": url, "output": output, "versions": len(found.live), "n_bytes": found.n_bytes,
            "n_stored": found.n_stored, "worst_share": worst, "freed": {row.rule: row.n_freed for row in found.freed},
            "damage": found.damage, "sections": found.sections, "failed_sections": found.failed_sections,
        })  # fmt: skip
    else:
        show(facts([
            ("wrote", output),
            ("versions", f"{len(found.live):,}"),
            ("size", f"{human_bytes(found.n_bytes)} of tensors in {human_bytes(found.n_stored)}: {found.ratio:.1f}x"),
            ("errors", None if worst is None else f"at most {100 * worst:.1f} % of the bound"),
        ]))  # fmt: skip
    return 1 if found.damage else 0


def _originals(pairs: Sequence[str]) -> dict[str, str]:
    """SELECTOR=FILE, where the selector may have an equals sign of its own.

    Examples
    --------
    >>> _originals(["latest=a.npz", "step=20=b.npz"])
    {'latest': 'a.npz', 'step=20': 'b.npz'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        words = pair.split("=")
        ways = [("=".join(words[:i]), "=".join(words[i:])) for i in range(1, len(words))]
        selector, file = next(((a, b) for a, b in ways if is_selector(a) and b), ("", ""))
        if not selector:
            raise click.UsageError(f"--original takes SELECTOR=FILE, such as latest=model.safetensors, not {pair!r}")
        found[selector] = file
    return found
