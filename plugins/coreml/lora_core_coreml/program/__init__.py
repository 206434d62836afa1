"""The program as an object: what a link needs, where it is stored, and what its methods are called."""
