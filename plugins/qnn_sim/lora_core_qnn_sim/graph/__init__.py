"""The static graph: dimensions, nodes, tensors and where LoRA attaches."""
