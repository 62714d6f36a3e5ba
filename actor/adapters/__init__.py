"""Following the log of adapters: choosing, loading, attesting and routing them, and serving LoRA on a CPU."""
