"""Charts of a study as SVG."""
