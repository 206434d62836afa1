"""Sphinx's configuration; it builds what `docsite.staging` made of `docs/`."""

project = "lora-core"
extensions = ["myst_parser"]
html_theme = "furo"  # brings all that it shows: nothing is fetched, neither by the build nor by a reader
html_title = "lora-core"
html_copy_source = False
html_show_sphinx = False
root_doc = "index"
highlight_language = "none"
myst_heading_anchors = 4  # as code hosts make them
nitpicky = True
