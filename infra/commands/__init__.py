"""The commands of ``tidemill``, a file for each family; ``infra/cli.py`` holds those of the ring itself and hooks the others in."""
