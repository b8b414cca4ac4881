"""What is known of a forward's images: which they are, what the tower said, where they stand."""
