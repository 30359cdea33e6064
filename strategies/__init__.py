"""The server's side and the mathematics, as a library."""
