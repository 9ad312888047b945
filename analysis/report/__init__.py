"""The report of a study: verdict, Markdown, one HTML page."""
