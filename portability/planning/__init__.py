"""From a grid to runs."""
