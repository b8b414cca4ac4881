"""One trial after the other: what is suggested, measured, stopped early and written down."""
