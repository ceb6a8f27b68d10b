"""The commands of `gnp`, one file each; torch and Ray are imported only when a command is called."""
