"""What reproduces papers and measures overheads. Nothing of it travels in the app."""
