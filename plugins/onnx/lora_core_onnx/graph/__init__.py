"""The model as a graph: made node by node from what a configuration describes, without torch."""
