"""Pages that show what is in a store: one HTML file each, with nothing outside of it. Plug-ins add sections."""

from nearzip.report.facts import StoreFacts
from nearzip.report.page import write_report
from nearzip.report.section import Section, View

__all__ = ["Section", "StoreFacts", "View", "write_report"]
