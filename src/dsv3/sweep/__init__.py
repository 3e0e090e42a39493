"""Sweeps: arms and seeds, the check that arms differ in one thing, running them, statistics."""
