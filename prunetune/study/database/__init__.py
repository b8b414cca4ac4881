"""Where a study lives, for workers that come and go and databases that restart."""
