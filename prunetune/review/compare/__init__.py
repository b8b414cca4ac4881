"""Two configs or studies side by side."""
