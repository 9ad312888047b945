"""Port PEFT modules between host models, and measure when that helps."""

__version__ = "0.1.0"
