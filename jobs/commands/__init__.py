"""The commands of `gnp`, one file each; what takes torch or Ray is imported when the command is called."""
