"""The command ``tidemill``: a file for each family of commands."""
