"""The whole journey on the digit teacher that ships with the package."""
