"""Checkpoints as named fragments in safetensors; knows neither engine nor DeepSpeed."""
