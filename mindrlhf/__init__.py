"""Preference alignment and RLHF for MindSpore."""

__version__ = "0.1.0"
