"""Rows as tables and documents, and progress bars."""
