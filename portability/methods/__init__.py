"""PEFT methods on a host."""
