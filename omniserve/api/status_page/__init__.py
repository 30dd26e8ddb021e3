"""The status page: one document that keeps itself up to date, with nothing from elsewhere."""
