"""What is computed differently on a CPU and on a GPU: attention of packed rollouts, experts with their adapters, the output head."""
