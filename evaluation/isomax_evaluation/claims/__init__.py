"""The papers' claims with our numbers: small tables, and the page made of them."""
