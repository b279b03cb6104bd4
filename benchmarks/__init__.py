"""How fast Millstream is, as ratios to the limit measured beside it. See README.md here."""
