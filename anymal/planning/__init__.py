"""What a profile will need before anything is paid for: memory per GPU, steps, storage and GPU-hours."""
