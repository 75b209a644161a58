"""Data: real anatomy out of Python packages, the virtual cohort, and the user's own files."""
