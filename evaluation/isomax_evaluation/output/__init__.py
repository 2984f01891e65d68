"""Files that are whole or not there, folders that belong to one run, tables, progress, errors."""
