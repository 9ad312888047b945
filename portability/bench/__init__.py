"""Our engine against what a user would do instead: ``portability bench``."""
