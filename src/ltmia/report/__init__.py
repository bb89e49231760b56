"""Shows results as one offline HTML page, in the terminal and in a notebook."""
