"""What the simulator knows of a model on a machine: measured, or reckoned from peak rates."""
