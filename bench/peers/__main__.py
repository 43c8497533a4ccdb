"""python -m bench.peers"""

import typer

from bench.peers.compare import main

if __name__ == "__main__":
    typer.run(main)
