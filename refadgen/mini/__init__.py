"""The built-in model: see README.md for what it is and is not."""
