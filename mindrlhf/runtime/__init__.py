"""Device, console, files, errors: knows nothing of the layers above."""
