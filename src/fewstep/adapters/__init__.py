"""Other libraries' conventions: how their samplers and networks are called. Nothing here imports them at load."""
