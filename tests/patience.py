"""How long a test waits for what has to come."""

HANG_S = 300.0
"""Only what hangs takes so long: on a busy machine a start of three seconds may take a minute."""
