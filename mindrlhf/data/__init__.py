"""Preference files, chat templates, records, rows."""
