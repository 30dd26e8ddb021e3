"""`omniserve top`: what a daemon is doing, kept up to date in the terminal."""
