"""Starting ranks; torch-free."""
