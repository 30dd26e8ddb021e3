"""Taking over the tiers of a changed configuration while requests run."""
