"""Settings: which names there are, what each takes, how they are read from source, and what is wrong with them."""
