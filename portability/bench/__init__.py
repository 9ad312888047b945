"""Our engine against what a user would do instead: ``python -m portability.bench``."""
