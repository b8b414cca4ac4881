"""What the layers behind a stage are told: slots, masks, positions, mass, and the cache."""
