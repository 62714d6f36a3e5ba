"""The actor's own HTTP doors beside vLLM's: feedback, recent episodes, the page to talk, their OpenAPI document."""
