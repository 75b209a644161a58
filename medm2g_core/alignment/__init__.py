"""Prompt encoders in one space (central alignment) and the medical visual invariant."""
