"""What must not leave the process is taken out of what people and models said: emails, phones, cards, keys."""
