"""Results to one offline HTML page and to a table in the terminal."""
