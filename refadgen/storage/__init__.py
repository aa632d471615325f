"""Local folders and `s3://` prefixes behind one interface, and the addresses of files and images."""
