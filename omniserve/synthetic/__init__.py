"""Models made on the spot: checkpoints with random weights, for tests and demonstrations."""
