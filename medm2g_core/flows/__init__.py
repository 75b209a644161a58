"""Flows: one latent diffusion model a modality, guided by one another."""
