"""Taking over tiers, tenants and certificates of a changed configuration while requests run."""
