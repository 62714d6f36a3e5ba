"""Serving a policy and learning from being used: vLLM with capture, routing and attested adapters."""
