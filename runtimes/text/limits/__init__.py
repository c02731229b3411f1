"""What a chat template may take while it is rendered: so much of a processor's time, and so much memory."""
