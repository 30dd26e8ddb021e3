"""What the daemon is doing, at one moment and over the last minutes, for people who look."""
