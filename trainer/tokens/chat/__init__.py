"""Chats and completions: records of turns, rendered by a template, with the trained ids marked."""
