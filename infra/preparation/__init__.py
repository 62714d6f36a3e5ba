"""What a ring needs before it starts, prepared in parallel and cancellable."""
