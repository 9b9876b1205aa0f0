"""A result as a page that opens from disk: groups with their images, a map, and why each image is where it is."""

from cae.report.page import REPORT_FOLDER, has_report, redraw_report, write_report

__all__ = ["REPORT_FOLDER", "has_report", "redraw_report", "write_report"]
