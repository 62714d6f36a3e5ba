"""The actor's own HTTP endpoints beside vLLM's: feedback, recent episodes, the chat page, and their OpenAPI document."""
