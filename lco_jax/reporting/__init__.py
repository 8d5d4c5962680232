"""Statistics over seeds, pictures and tables, from numbers on the host."""
