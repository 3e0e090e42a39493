"""A run as a directory: identity, lock, provenance, records; torch-free."""
