"""Training loops and the registry that joins cells and families."""
