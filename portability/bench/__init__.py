"""What training a module costs here, against what a user would do instead: ``python -m portability.bench``."""
