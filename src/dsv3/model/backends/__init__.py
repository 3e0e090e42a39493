"""Where the model's layers come from: one backend per arithmetic."""
