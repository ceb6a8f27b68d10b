"""`make loop`: attack, train, attack again, on digits."""
