"""What a plugin may ask for and give back. Nothing here decides anything."""
