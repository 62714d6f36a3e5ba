"""What a ring needs before it starts, made ready side by side and in children that can be broken off."""
