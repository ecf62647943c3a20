"""Preference losses: pure functions on small tensors."""
