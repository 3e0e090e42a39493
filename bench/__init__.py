"""Speed, measured on the machine it runs on; figures are printed, never asserted."""
