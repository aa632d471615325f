"""The training example: its schema, its geometry, degradations of product images, importers."""
