"""The files of a simulated context: container, foundation, context binary and sections."""
