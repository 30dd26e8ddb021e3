"""The load generator: sends a trace's requests at its times and records every token's."""
