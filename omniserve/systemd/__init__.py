"""Running as a service of systemd: what it is told, and the units."""
