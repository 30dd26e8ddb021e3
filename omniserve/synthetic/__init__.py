"""Models made on the spot: checkpoints with random weights that behave like trained ones in what a server needs."""
