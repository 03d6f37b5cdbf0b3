"""The mixed load of tools/soak.py: what is asked, who reads, what must hold."""
