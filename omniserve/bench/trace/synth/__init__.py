"""Makes synthetic traces."""
