"""Which generator made an image: a primary module, and a secondary module for each source."""
