"""The life of a model in the front: loaded, served, drained, unloaded, while the daemon runs."""
