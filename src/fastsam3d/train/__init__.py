"""Training: data on the device, simulated users, optimisers, the loop. Serving never imports it."""
