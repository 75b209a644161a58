"""Explore: ask the model one's own questions, in a notebook or in the browser, and keep what it
drew."""
