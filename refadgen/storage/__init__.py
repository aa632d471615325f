"""Local folders and `s3://` prefixes, and the addresses of what lies there."""
