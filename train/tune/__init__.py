"""Search over hyper-parameters on held-out training examples."""
