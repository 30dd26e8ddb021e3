"""The comparison of latency-sensitive and best-effort work on one machine, by several servers."""
