"""Codecs: streams to latents and back."""
