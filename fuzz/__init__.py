"""Fuzzing of the surfaces that strangers reach: `python -m fuzz`, or `make fuzz`."""
