"""The multi-method layout: one program with a method for the base and one for each adapter."""
