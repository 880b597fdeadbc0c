"""Every configuration of arXiv:2509.11348 on small real data, and what lowers the barrier."""
