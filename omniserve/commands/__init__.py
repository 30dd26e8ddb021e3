"""Commands of the command line that talk to a daemon, run one, or look at its configuration."""
