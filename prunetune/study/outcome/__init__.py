"""What a study ends with: its winner, what that is worth, and the front."""
