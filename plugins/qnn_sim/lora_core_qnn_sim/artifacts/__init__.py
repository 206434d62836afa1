"""The files of a simulated context: container, foundation, context binary and sections."""

FOUNDATION = "foundation.bin"
CONTEXT = "context.bin"
SECTIONS = "sections"
