"""The only code that opens, writes and transforms weight files."""
