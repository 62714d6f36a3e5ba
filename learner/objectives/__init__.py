"""What a step of learning asks for: more of what was rewarded, less of what got a thumb down, what people's words teach."""
