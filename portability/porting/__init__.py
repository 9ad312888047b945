"""Fit a module to another host."""
