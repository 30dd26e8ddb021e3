"""Measures what steps of a model take on this machine, and fits a model of them."""
