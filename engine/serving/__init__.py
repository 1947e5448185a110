"""Policies over the network: a server that speaks the dialects of robots' clients, and a client of such servers."""
