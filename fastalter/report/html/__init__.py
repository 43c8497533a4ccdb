"""The report as one self-contained HTML file: job.py gathers, page.py arranges, figures.py draws."""

from fastalter.report.html.job import ReportOptions, ReportRun, write_report

__all__ = ["ReportOptions", "ReportRun", "write_report"]
