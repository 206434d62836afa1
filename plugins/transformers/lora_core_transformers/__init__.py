"""A generic model source: what transformers defines and torch.export takes."""
