"""One file per command line."""
