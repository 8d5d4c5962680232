"""Language: policies that complete prompts."""
