"""The study: every method in every scenario, and the document that is written from the figures."""
