"""Many studies side by side: one table of gains and costs, in the terminal, as a page, and as a README."""
