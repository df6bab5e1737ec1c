"""Tasks: what a kind of labels needs, one short file each."""
