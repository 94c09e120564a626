"""What travels between a server and its clients: masks and volumes as bytes, without torch."""
