"""A cheap load client: URL METHOD PATH BODY REQUESTS CONNECTIONS; prints requests a second."""

import http.client
import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from urllib.parse import urlsplit


def main(url: str, method: str, path: str, body: str, requests: str, connections: str) -> None:
    """Send the same request again and again over kept connections; each must be answered 200."""
    each = int(requests) // int(connections)
    host = urlsplit(url)

    def run(_: int) -> None:
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
        headers = {"Content-Type": "application/json"} if body else {}
        for _ in range(each):
            connection.request(method, path, body=body or None, headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise AssertionError(f"{method} {path} was answered {answer.status}")
        connection.close()

    began = perf_counter()
    with ThreadPoolExecutor(int(connections)) as pool:
        list(pool.map(run, range(int(connections))))
    print(each * int(connections) / (perf_counter() - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
