"""What stands behind each verb of the command line; imports everything, lazily."""
