"""How a run's module starts."""
