"""A result as a page that opens from disk: groups with their pictures, a map, and why each picture is where it is."""

from cae.report.page import REPORT_FOLDER, write_report

__all__ = ["REPORT_FOLDER", "write_report"]
