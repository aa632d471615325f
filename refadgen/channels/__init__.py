"""What advertising channels take: feeds that name the ads."""
