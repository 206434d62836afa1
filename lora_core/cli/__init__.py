"""The command line: thin commands over the library, progress on stderr, results on stdout."""
