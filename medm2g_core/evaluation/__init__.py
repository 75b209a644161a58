"""Evaluation: scores, each beside its baselines, its ceiling, its n and its interval."""
