"""`raystyle doctor`: what of this machine, or of every node of a cluster, would stop a command, and the remedy.

`machine.py` looks at one machine and needs no Ray; `cluster.py` sends it to every node of a running Ray and looks at
what lies between them. A check is a function that returns records; the exit status is 1 where one of them failed.
"""
