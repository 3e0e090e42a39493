"""The one schema of a run, how it is composed, and the rules between its sections; torch-free."""
