"""The page of a finished run: one self-contained ``report.html``."""

from autopeft.report.render import page, write_report

__all__ = ["page", "write_report"]
