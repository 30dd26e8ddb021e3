"""`omniserve demo`: both tiers under load for a minute, watched live and summed up in a report."""
