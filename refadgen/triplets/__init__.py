"""The training example: its parquet schema, its crop, degraded product images, an importer of the authors' layout."""
