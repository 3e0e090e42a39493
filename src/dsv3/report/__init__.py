"""Reports of sweeps: what was found, from the files of the runs alone."""
