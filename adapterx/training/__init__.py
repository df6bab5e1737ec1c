"""Training: settings, one loop on Accelerate, and what a task or a language trains on."""
