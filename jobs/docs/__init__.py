"""Programs that make parts of docs/: the reference pages and the pictures."""
