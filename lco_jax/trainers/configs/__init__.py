"""Settings of runs with their defaults, one file for each kind of run."""
