"""The four services. They import `shared`, never one another."""
