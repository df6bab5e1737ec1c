"""Terms: what the training of a task reads and loses beside its labels, for neutral languages."""
