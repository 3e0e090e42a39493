"""A rank at work: the composition root, the loop, evaluation, health and mirrors."""
