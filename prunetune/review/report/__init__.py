"""One self-contained HTML page on a study."""
