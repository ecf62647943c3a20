"""The yaml of a run: schema and loading."""
