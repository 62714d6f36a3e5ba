"""The Faust app that refits: batches in, versions out."""
