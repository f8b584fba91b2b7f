"""Everything in as few passes as possible, and the report drawn from the files."""
