"""What the project is made of: locked versions, the bill of materials, generated reference pages."""
