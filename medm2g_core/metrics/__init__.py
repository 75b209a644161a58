"""Scores as pure functions of arrays and texts, and one bootstrap for their intervals."""
