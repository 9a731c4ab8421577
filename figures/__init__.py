"""What is asked and how it looks: the command line, the runs behind it, and the pictures."""
