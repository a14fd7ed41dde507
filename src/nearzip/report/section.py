"""What a section of a store's page is, and what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from nearzip.report.engine import environment
from nearzip.report.facts import StoreFacts
from nearzip.store import Store

__all__ = ["Section", "View"]


@dataclass(frozen=True)
class View:
    """What sections see.

    Parameters
    ----------
    store : Store
        For what `facts` does not have. Sections read it only.
    facts : StoreFacts
        What was gathered once for all sections.
    """

    store: Store
    facts: StoreFacts

    def render(self, template: str, **values: Any) -> str:
        """Markup from a Jinja template. Values are escaped, except drawings of `nearzip.report.svg`.

        Templates have the filters `size` (bytes for people), `number` (four digits) and `shown` (names that are not
        trusted).
        """
        return str(environment().from_string(template).render(facts=self.facts, **values))


class Section(ABC):
    """One part of the page about a store.

    Attributes
    ----------
    name : str
        The key of its facts in JSON, and the name of its entry point.
    title : str
        Its heading.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def applies(self, view: View) -> bool:
        """Whether the page has this section. Stores without versions have none."""
        return True

    @abstractmethod
    def data(self, view: View) -> dict[str, Any]:
        """What the section shows, as JSON: `nearzip store report --json` prints it."""

    @abstractmethod
    def html(self, view: View) -> str:
        """Markup below the heading: no script, nothing that is fetched, and every name escaped (`View.render`)."""
