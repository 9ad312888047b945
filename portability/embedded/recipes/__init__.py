"""How the embedded hosts and data were made."""
