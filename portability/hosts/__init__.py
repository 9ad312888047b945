"""Frozen language models."""
