"""Tables of a study: which there are, and their CSV, Markdown and LaTeX."""
