"""Checkpoints as named fragments in safetensors; knows neither engine nor DeepSpeed.

    checkpoints/step-N/
      manifest.json          run, configuration, step, attempt, layout, hashes of what follows
      manifest.json.sha256   its hash, written last: without it the checkpoint is not complete
      state.json             where the run is: schedule, loader cursor, anything that is JSON
      rank-00000.json        what one rank wrote: its fragments, the hash of its file, its streams
      rank-00000.safetensors flat slices of global tensors, as that rank held them

A reader trusts nothing it has not hashed, and nothing pickled is ever read.
"""
