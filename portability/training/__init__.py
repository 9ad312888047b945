"""Many modules in training over one frozen host."""
