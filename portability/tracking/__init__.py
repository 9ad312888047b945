"""Weights & Biases: runs filed from their records, and a workspace that compares them. Never the record
itself."""
