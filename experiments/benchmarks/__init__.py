"""What the app costs beyond the training it does. Each prints JSON."""
