"""Rotations, poses, pseudo-actions, embodiments and normalisation. NumPy only: knows robots, not tensors."""
