"""The engine: step loop, request state, sampler and device KV pool.

Importing this package alone is cheap; `omniserve.engine.core` brings torch.
"""
