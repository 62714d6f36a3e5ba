"""What "good" means, kept up to date: labels in, reward-model versions out."""
