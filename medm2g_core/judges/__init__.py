"""Judges: finding classifiers that never saw a generated image."""
