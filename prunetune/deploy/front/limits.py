"""How much a request may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of everything that a client decides.

    Attributes:
        body: Bytes of one request.
        bodies: Bytes of all requests that are here at one time.
        body_seconds: Until a request's body is here.
        waiting: Requests that wait for the model, beside the one that it answers.
        write_seconds: Until a client has taken a part of an answer.
        depth: Levels of lists and objects in a request.
        text: Letters of all texts of a request.
        pictures: Of a request.
        pixels: Of all pictures of a request.
        picture: Bytes of one fetched picture.
        picture_seconds: Until it is here, redirects included.
        redirects: Followed for one picture.
        private_hosts: Whether pictures may be on this machine or in a private network.
        hosts: Names under which clients may reach this server beside its address; ``*`` for any.
    """

    body: int = 32 << 20
    bodies: int = 128 << 20
    body_seconds: float = 60.0
    waiting: int = 32
    write_seconds: float = 60.0
    depth: int = 64
    text: int = 1 << 20
    pictures: int = 32
    pixels: int = 50_000_000
    picture: int = 20 << 20
    picture_seconds: float = 10.0
    redirects: int = 3
    private_hosts: bool = False
    hosts: tuple[str, ...] = ()
