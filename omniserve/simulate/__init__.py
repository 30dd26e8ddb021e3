"""A discrete-event simulator around the scheduler that serves."""
