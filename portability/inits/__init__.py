"""Where a run starts."""
