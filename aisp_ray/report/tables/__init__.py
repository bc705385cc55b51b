"""Tables: `cells` is what one is made of, `evaluation` and `search` fill them, `render` turns them into text."""
