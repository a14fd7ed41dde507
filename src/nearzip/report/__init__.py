"""Pages that show what is in a store: one HTML file each, with nothing outside of it."""

from nearzip.report.page import write_report

__all__ = ["write_report"]
