"""Training as plain algorithms over exact tensors: the model, its data, its plan. No chain, no HTTP."""
