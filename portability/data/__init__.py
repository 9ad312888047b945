"""Data sets, their texts and batches."""
