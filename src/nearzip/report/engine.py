"""The template engine and the style sheet that all pages share: no script, nothing fetched, every name escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

from nearzip.display import human_bytes, safe
from nearzip.errors import missing_extra
from nearzip.report.svg import Drawing

__all__ = ["environment", "number"]


def environment() -> Any:
    """A jinja2 environment that escapes everything; `style` holds the style sheet. Raises MissingExtraError."""
    try:
        import jinja2
    except ImportError:
        raise missing_extra("jinja2", "report", "a report") from None
    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    engine.filters.update(size=human_bytes, shown=safe, number=number)
    engine.globals["style"] = Drawing((resources.files("nearzip.report") / "style.css").read_text("utf-8"))
    return engine


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
