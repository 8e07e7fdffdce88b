"""What a batch asks of the model, how an answer is scored: one file each."""
