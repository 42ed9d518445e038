"""A report about runs: one HTML page without network, with a Markdown and a CSV twin."""
