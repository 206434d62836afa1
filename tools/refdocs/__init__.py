"""Reference pages made from the code: `python -m refdocs` writes them, a test compares them."""
