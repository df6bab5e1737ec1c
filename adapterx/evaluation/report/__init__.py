"""Reports of a table: for the terminal, as files, as pictures, and as a page of its own."""
