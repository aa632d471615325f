"""Feeds as shops export them: a reader for each kind; what it reads is staged once as parquet, one product a row."""
