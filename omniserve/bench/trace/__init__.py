"""Traces of requests: reading, describing, changing and making them."""
