"""The engines of a simulation: the scheduler that serves, and what its steps would take."""
