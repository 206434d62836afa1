"""The template cache: lowered programs kept without weights, so that another base of the architecture can fill them."""
