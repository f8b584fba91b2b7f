"""Patch forensics: which patches give a fake away (Chai, Bau, Lim, Isola, ECCV 2020)."""
