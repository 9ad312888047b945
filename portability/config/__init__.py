"""From the command line to a study."""
