"""Attention in a process of its own: its KV pool, its rings, its workers and who watches them."""
