"""Text in, samples out: sources, tokenizer, packing, shards and the stateless loader."""
