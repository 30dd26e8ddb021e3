"""Calls of clients, over either protocol: one line in the log, one count and one span for each."""
