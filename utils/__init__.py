"""Errors, files, provenance, tables, command line, tracking, pictures and figures."""
