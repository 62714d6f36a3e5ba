"""From rewards to adapters: rollouts, advantages, losses, publishing."""
