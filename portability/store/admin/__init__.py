"""Verify, merge and archive studies."""
