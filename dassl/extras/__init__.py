"""What Dassl does not have: feature store, distribution, interrupts, locks, command lines."""
