"""Hosts and data that come with the project."""
