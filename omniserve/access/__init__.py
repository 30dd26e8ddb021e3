"""Who calls, what they may use, and how much of it."""
