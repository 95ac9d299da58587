"""Chats and completions, from records to a served model."""
