"""Layouts, strategies and the launcher."""
