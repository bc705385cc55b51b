"""The page: `render` fills the template `page.html`, `payload` makes what its browser of prompts reads."""
