"""How the system is brought up: the toy world and the recipes for real machines."""
