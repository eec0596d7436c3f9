"""What is said: messages, the prompts made of them, and the live conversation."""
