"""The only importer of DeepSpeed: training engine, optimizer, fragments of its state."""
