"""Model adapters: `pre` and `post` of every layer over transformers' own modules."""
