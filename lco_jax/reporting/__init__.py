"""Statistics over seeds, figures and tables, computed on the host."""
