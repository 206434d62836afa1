"""The split layout: a program for the base and one for each adapter, over one foundation file."""
