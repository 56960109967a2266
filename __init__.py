"""Tilewright: a graph compiler from transformer checkpoints to WGSL, and its player."""
