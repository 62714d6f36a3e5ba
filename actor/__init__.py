"""Serves a policy: vLLM with capture of episodes, routing of requests, and attested adapters."""
