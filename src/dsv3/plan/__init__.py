"""What a configuration will need, computed from the configuration alone; torch-free."""
