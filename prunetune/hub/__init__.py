"""The Hugging Face hub as a place where configs are: addresses, files, the card of a repository.

Knows no config: what is kept there is bytes.
"""
