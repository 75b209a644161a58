"""What Jupyter starts in place of a kernel: asks the warm process to become one.

Run as a script with nothing but the standard library, so that it costs 10 MB and no time. It lives
as long as the kernel and passes signals on; when it is gone, the kernel ends too.
"""

import os
import signal
import socket
import sys


def main(address: str, connection_file: str) -> int:
    """Ask for a kernel and wait for its end.

    Args:
        address: of the Unix socket of `medm2g_core.explore.warm`.
        connection_file: Jupyter's, which the kernel reads.
    """
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(address)
        warm.sendall(connection_file.encode() + b"\n")
        answer = warm.makefile("rb")
        kernel = int(answer.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        answer.readline()  # nothing is ever sent: it returns when the kernel has ended
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
