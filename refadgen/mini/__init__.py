"""The built-in model: how it is made, and its weights. README.md has its model card and figures."""
