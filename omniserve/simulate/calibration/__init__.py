"""Measures a model on this machine and fits what the simulator knows of it."""
