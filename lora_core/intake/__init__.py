"""How strangers' bytes come in: regular files, plain data and expressions, each within limits of size and time."""
