"""Holds simulated runs to real ones."""
