"""The model as plain single-device torch; parallelism and precision are applied from outside."""
