"""What the code knows of each model architecture, one record a family, and what it reads of a base's folder before anything is loaded."""
