"""Figures and the demo: everything that people look at."""
