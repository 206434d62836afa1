"""The documentation as a site: `make docs` stages the pages of `docs/` and lets Sphinx build them."""
