"""Attention on host cores: numpy and numba only."""
