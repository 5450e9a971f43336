"""The page of a finished run: one self-contained ``report.html``."""

from autopeft.report.render import write_report

__all__ = ["write_report"]
