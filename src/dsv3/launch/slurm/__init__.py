"""Ranks as jobs of a Slurm cluster."""
