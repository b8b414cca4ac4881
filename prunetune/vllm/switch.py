"""What switches the plug-in on; imports nothing."""

ENVIRONMENT = "PRUNETUNE_CONFIG"
"""Names the config, a file or ``hf://org/name/file``; unset or empty, vLLM is as it was."""
