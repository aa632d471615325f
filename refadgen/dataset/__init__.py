"""Training data: the triplet schema that every source writes, degradations of product images, importers."""
