"""Training: stages, the loop, and checkpoints that resume."""
