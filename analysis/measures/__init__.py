"""Quantities of a study: numbers by row, no words."""
