"""Control: policies that act in environments."""
