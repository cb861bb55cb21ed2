"""Moves LLM KV-cache blocks between processes and hosts over many rails."""
