"""Examples at a size that a laptop takes, each run by one command: see README.md."""
