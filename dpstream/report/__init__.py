"""`report.html`: a campaign told from its ledger, as one file that opens offline."""

from dpstream.report.page import write_report

__all__ = ["write_report"]
