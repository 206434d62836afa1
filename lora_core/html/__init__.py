"""Reports kept in files, and the page that shows them."""
