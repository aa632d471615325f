"""Marks of published images: reading the XMP record, signing and reading C2PA, the watermark, and who made a file."""
