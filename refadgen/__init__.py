"""RefAdGen at SKU scale."""
