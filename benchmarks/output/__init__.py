"""Writes rows as tables, CSV or JSON, and shows progress bars."""
