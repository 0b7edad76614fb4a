"""Rows as tables, documents and progress bars."""
